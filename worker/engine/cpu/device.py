"""A rank on a CPU: slots in a memfd, SGLang's parameters as views of it, experts in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.topk import StandardTopKOutput

from native import _native
from worker.engine.cpu.dispatcher import ElasticDispatcher
from worker.engine.cpu.experts import SlotExperts, plain_swiglu
from worker.engine.errors import CheckpointError, UnsupportedError
from worker.engine.slots import HostSlots
from worker.engine.support import check_plain_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from native.plane import DataPlane
    from worker.engine.membership import View
    from worker.engine.settings import EngineSettings
    from worker.engine.slots import SlotLayout, SlotMemory

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class CpuDevice:
    """The CPU; stateless."""

    name = "cpu"
    needs_plane_for_warm_up = False

    def check_layer(self, layer: Any) -> None:
        """Unquantised FusedMoE on the CPU."""
        check_plain_layer(layer, parameters={"UnquantizedFusedMoEMethod": {"w13_weight", "w2_weight"}})
        if layer.w13_weight.device.type != "cpu":
            raise UnsupportedError("--device", layer.w13_weight.device.type, "set worker.device to the one SGLang uses")

    def slot_dtype(self, layer: Any) -> str:
        """float32 or bfloat16."""
        dtype = _DTYPES.get(layer.params_dtype)
        if dtype is None:
            raise UnsupportedError("--dtype", layer.params_dtype, "start with --dtype float32 or bfloat16")
        return dtype

    def slots(self, layout: SlotLayout, name: str) -> SlotMemory:
        """A memfd; pages come when they are touched."""
        return HostSlots.create(layout, name)

    def peer_slots(self, layout: SlotLayout, fd: int) -> SlotMemory:
        """Its memfd, read-only."""
        return HostSlots(layout, fd, writable=False)

    def place(self, layer: Any, memory: SlotMemory, index: int) -> None:
        """w13 and w2 become views of the memfd."""
        for parameter, view in zip((layer.w13_weight, layer.w2_weight), _views(memory, index), strict=True):
            if parameter.data.nbytes != view.nbytes:
                raise CheckpointError(
                    f"layer {layer.layer_id}: SGLang's experts are {tuple(parameter.shape)}, the checkpoint's differ"
                )
            parameter.data = view.view(layer.params_dtype).view(parameter.shape)

    def in_place(self, layer: Any, memory: SlotMemory, index: int) -> bool:
        """Whether nobody moved them."""
        w13, w2 = _views(memory, index)
        same: bool = layer.w13_weight.data_ptr() == w13.data_ptr() and layer.w2_weight.data_ptr() == w2.data_ptr()
        return same

    def experts(self, layer: Any) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """Ours for plain SwiGLU: SGLang's take several times as long here."""
        return SlotExperts(layer.w13_weight.data, layer.w2_weight.data) if plain_swiglu(layer) else None

    def dispatcher(self, index: int, *, config: Any) -> ElasticDispatcher:
        """One that returns when the rows are there."""
        del config
        return ElasticDispatcher(index)

    def plane(
        self, settings: EngineSettings, layers: Sequence[Any], *, experts: int, control: _native.ControlBlock
    ) -> DataPlane:
        """``native.Group``."""
        first = layers[0]
        shape = _native.Shape(
            max_ranks=settings.max_ranks,
            max_tokens=settings.max_tokens,
            hidden=first.hidden_size,
            max_topk=max(layer.top_k for layer in layers),
            max_slots=settings.slots,
            n_experts=experts,
            n_layers=len(layers),
            dtype=_native.DType.FLOAT32 if first.params_dtype.itemsize == 4 else _native.DType.BFLOAT16,
        )
        return _native.Group(
            rank=settings.rank,
            incarnation=settings.incarnation,
            shape=shape,
            control=control,
            timeout_s=settings.silence_s,
            hard_timeout_s=settings.step_deadline_s,
            fixed=settings.fixed_membership,
        )

    def empty_batch(self, layer: Any) -> tuple[torch.Tensor, Any]:
        """On the host."""
        return empty_batch(layer, device="cpu", dtype=layer.params_dtype)

    def prepare_idle(self, run: Callable[[], None]) -> None:
        """There is nothing to prepare."""

    def idle(self, run: Callable[[], None], *, rounds: int) -> None:
        """Just run it."""
        del rounds
        run()

    def entered(self, view: View, *, tokens: int | None) -> None:
        """Dispatchers look for themselves."""

    def settle(self, plane: DataPlane) -> None:
        """A dispatch or a combine that is short of something has raised already."""

    def seams(self, rounds: Callable[[], int]) -> Iterable[tuple[Any, Callable[..., Any]]]:
        """None."""
        del rounds
        return ()


def empty_batch(layer: Any, *, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
    """No tokens for one layer: hidden states and SGLang's routing of them."""
    hidden = torch.empty((0, layer.hidden_size), dtype=dtype, device=device)
    weights = torch.empty((0, layer.top_k), dtype=torch.float32, device=device)
    return hidden, StandardTopKOutput(weights, torch.empty_like(weights, dtype=torch.int32), None)


def _views(memory: SlotMemory, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(memory, HostSlots):
        raise TypeError(f"{type(memory).__name__} is no host memory")
    layout = memory.layout
    start, middle = index * layout.layer_bytes, layout.slots * layout.expert.w13_bytes
    block = torch.frombuffer(memory.map, dtype=torch.uint8)[start : start + layout.slots * layout.expert.nbytes]
    return block[:middle], block[middle:]
