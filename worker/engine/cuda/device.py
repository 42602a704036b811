"""A rank on a CUDA device: slots in shared device memory, dispatch and combine inside SGLang's decode graphs.

The step sync runs before a step is replayed, and the status is read after it: a captured graph holds neither, and is
captured once for ever. Tables, masks, links, deadlines, aborts, and what of a batch is padding change behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from native.cuda import CudaGroup, CudaShape, Layout, Wire
from worker.engine import seams
from worker.engine.checkpoint import FP8
from worker.engine.cpu.device import empty_batch
from worker.engine.cuda.dispatcher import CudaDispatcher, MaskedDispatcher
from worker.engine.cuda.idle import IdleStep
from worker.engine.cuda.memory import CudaSlots, tensor_at
from worker.engine.cuda.routing import StepWords
from worker.engine.errors import CheckpointError, StepAbandonedError, UnsupportedError
from worker.engine.settings import Missing
from worker.engine.support import check_plain_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from native import ControlBlock
    from native.plane import DataPlane
    from worker.engine.membership import View
    from worker.engine.settings import EngineSettings
    from worker.engine.slots import SlotLayout, SlotMemory

_PARAMETERS = {
    "UnquantizedFusedMoEMethod": ("w13_weight", "", "w2_weight", ""),
    "Fp8MoEMethod": ("w13_weight", "w13_weight_scale_inv", "w2_weight", "w2_weight_scale_inv"),
}
"""By SGLang's quantisation method: the parameters in the order of ``memory.Arrays``."""
_BLOCK = [128, 128]
"""Values that share a scale in the weights: what DeepGEMM takes."""


class CudaDevice:
    """One CUDA device, SGLang's current one."""

    name = "cuda"
    needs_plane_for_warm_up = True

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._index = 0
        self._fp8 = False
        self._dispatchers: list[CudaDispatcher] = []
        self._words: StepWords | None = None
        self._idle = IdleStep()

    # --- slots --------------------------------------------------------------------------------------------------------

    def check_layer(self, layer: Any) -> None:
        """Bf16 without quantisation through triton, or fp8 in blocks of 128 × 128 through DeepGEMM."""
        check_plain_layer(layer, parameters={name: set(names) - {""} for name, names in _PARAMETERS.items()})
        if layer.w13_weight.device.type != "cuda":
            raise UnsupportedError("--device", layer.w13_weight.device.type, "set worker.device to the one SGLang uses")
        method, runner = layer.quant_method, layer.runner_backend.value
        if type(method).__name__ == "Fp8MoEMethod":
            if method.weight_block_size != _BLOCK or method.use_mxfp8 or method.is_fp4_expert:
                raise UnsupportedError(
                    "fp8 experts", method.weight_block_size, "serve a checkpoint with 128 × 128 blocks"
                )
            if runner != "deep_gemm":
                raise UnsupportedError("--moe-runner-backend", runner, "start with --moe-runner-backend deep_gemm")
        elif runner != "triton":
            raise UnsupportedError("--moe-runner-backend", runner, "start with --moe-runner-backend triton")

    def slot_dtype(self, layer: Any) -> str:
        """bfloat16 or float8_e4m3fn."""
        self._fp8 = type(layer.quant_method).__name__ == "Fp8MoEMethod"
        if layer.params_dtype is not torch.bfloat16:
            raise UnsupportedError("--dtype", layer.params_dtype, "start with --dtype bfloat16")
        return FP8 if self._fp8 else "bfloat16"

    def slots(self, layout: SlotLayout, name: str) -> SlotMemory:
        """Device memory that peers can map."""
        del name
        self._index = torch.cuda.current_device()  # SGLang's; threads of our own would start on device 0
        return CudaSlots.create(layout, device=self._index)

    def peer_slots(self, layout: SlotLayout, fd: int) -> SlotMemory:
        """Mapped on our device."""
        return CudaSlots.map(layout, fd, device=self._index)

    def place(self, layer: Any, memory: SlotMemory, index: int) -> None:
        """Every parameter becomes a view of its array; room without a row is left out by its slot of -1."""
        for parameter, view in self._views(layer, memory, index):
            if parameter.data.nbytes != view.nbytes:
                raise CheckpointError(
                    f"layer {layer.layer_id}: SGLang's experts are {tuple(parameter.shape)}, the checkpoint's differ"
                )
            parameter.data = view.view(parameter.dtype).view(parameter.shape)
        if not self._fp8:
            # triton.py:130: triton skips ids of -1 only where the number of experts is not that of the local ones.
            layer.moe_runner_config.num_experts = None

    def in_place(self, layer: Any, memory: SlotMemory, index: int) -> bool:
        """Whether nobody moved, converted or interleaved them."""
        interleaved = getattr(layer.quant_method, "w13_swiglu_interleaved", False)
        same = all(
            parameter.data_ptr() == view.data_ptr() and parameter.is_contiguous()
            for parameter, view in self._views(layer, memory, index)
        )
        return same and not interleaved

    def _views(self, layer: Any, memory: SlotMemory, index: int) -> list[tuple[Any, torch.Tensor]]:
        if not isinstance(memory, CudaSlots):
            raise TypeError(f"{type(memory).__name__} is no device memory")
        result = []
        for array, name in enumerate(_PARAMETERS[type(layer.quant_method).__name__]):
            if name:
                place = memory.arrays.array(index, array)
                view = tensor_at(memory.memory.address + place.start, place.stop - place.start)
                result.append((getattr(layer, name), view))
        return result

    def experts(self, layer: Any) -> None:
        """SGLang's own."""
        del layer

    # --- the data plane -----------------------------------------------------------------------------------------------

    def dispatcher(self, index: int, *, config: Any) -> CudaDispatcher:
        """By the runner that SGLang chose for the layer."""
        settings = self._settings
        if config.runner_backend.value == "deep_gemm":
            capacity = settings.max_ranks * settings.max_tokens
            # A slot's fair share of a full step, as SGLang estimates it for DeepEP (deepep.py).
            expected = min(capacity, max(1, -(-settings.max_tokens * config.top_k // settings.slots)))
            made: CudaDispatcher = MaskedDispatcher(index, expected=expected, scale=config.routed_scaling_factor or 1.0)
        else:
            made = CudaDispatcher(index)
        self._dispatchers.append(made)
        return made

    def plane(
        self, settings: EngineSettings, layers: Sequence[Any], *, experts: int, control: ControlBlock
    ) -> DataPlane:
        """``native.cuda.CudaGroup`` over the whole device."""
        first = layers[0]
        device = torch.device("cuda", self._index)
        self._words = StepWords(
            layers=len(layers),
            experts=experts,
            best_effort=settings.missing_experts is Missing.BEST_EFFORT,
            device=device,
        )
        for dispatcher in self._dispatchers:
            dispatcher.use(self._words)
        return CudaGroup(
            rank=settings.rank,
            incarnation=settings.incarnation,
            shape=plane_shape(settings, layers, experts=experts),
            control=control,
            timeout_s=settings.silence_s,
            hard_timeout_s=settings.step_deadline_s,
            fixed=settings.fixed_membership,
            device=self._index,
            wire=Wire.FP8 if self._fp8 else Wire.BFLOAT16,
            layout=Layout.EXPERT_MAJOR if self._fp8 else Layout.PAIRS,
            blocks=torch.cuda.get_device_properties(first.w13_weight.device).multi_processor_count,
        )

    # --- steps --------------------------------------------------------------------------------------------------------

    def empty_batch(self, layer: Any) -> tuple[torch.Tensor, Any]:
        """On the device."""
        return empty_batch(layer, device="cuda", dtype=torch.bfloat16)

    def prepare_idle(self, run: Callable[[], None]) -> None:
        """Capture it."""
        self._idle.capture(run)

    def idle(self, run: Callable[[], None], *, rounds: int) -> None:
        """Replay it."""
        self._idle(run, rounds=rounds)

    def entered(self, view: View, *, tokens: int | None) -> None:
        """Write what captured dispatchers read, on the stream that runs them."""
        if self._words is not None:
            self._words.write(view.missing, rows=tokens)

    def settle(self, plane: DataPlane) -> None:
        """Wait for the stream: nothing may be sampled from a step that is not whole."""
        if not isinstance(plane, CudaGroup):
            raise TypeError(f"{type(plane).__name__} is not on a CUDA device")
        status = plane.settle()
        if status != 0:
            raise StepAbandonedError(status.name, plane.suspects, -1)

    def seams(self, rounds: Callable[[], int]) -> Iterable[tuple[Any, Callable[..., Any]]]:
        """A step of several rounds is not what the decode graphs hold: SGLang runs it without one."""

        def can_run_graph(original: Callable[..., bool], runner: Any, *args: Any, **kwargs: Any) -> bool:
            return rounds() == 1 and original(runner, *args, **kwargs)

        return ((seams.DECODE_GRAPH, can_run_graph),)


def plane_shape(settings: EngineSettings, layers: Sequence[Any], *, experts: int) -> CudaShape:
    """The constants of an instance, from its settings and SGLang's layers."""
    return CudaShape(
        max_ranks=settings.max_ranks,
        max_tokens=settings.max_tokens,
        hidden=layers[0].hidden_size,
        max_topk=max(layer.top_k for layer in layers),
        max_slots=settings.slots,
        n_experts=experts,
        n_layers=len(layers),
    )
