"""MoE layers whose experts are slots: what replaces SGLang's own construction, loading and computation of experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.topk import StandardTopKOutput

from worker.engine.dispatcher import ElasticDispatcher
from worker.engine.errors import CheckpointError, UnsupportedError
from worker.engine.experts import SlotExperts, plain_swiglu
from worker.engine.slots import SlotLayout, SlotMemory
from worker.engine.support import check_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.checkpoint import Checkpoint
    from worker.engine.settings import EngineSettings

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass
class MoELayers:
    """The MoE layers of the model under construction, in order.

    Attributes:
        settings: this rank's.
        checkpoint: where the model's experts are; says how many MoE layers there will be.
        memory: the slots; made when the first layer tells its dtype.
        layers: SGLang's FusedMoE modules by MoE layer index.
        dispatchers: ours, in the same order.
    """

    settings: EngineSettings
    checkpoint: Checkpoint
    memory: SlotMemory | None = None
    layers: list[Any] = field(default_factory=list)
    dispatchers: list[ElasticDispatcher] = field(default_factory=list)
    _experts: dict[int, SlotExperts] = field(default_factory=dict)
    _named: set[tuple[int, int, str]] = field(default_factory=set)

    # --- hooks on FusedMoE --------------------------------------------------------------------------------------------

    def construct(self, original: Callable[..., None], layer: Any, *args: Any, **kwargs: Any) -> None:
        """FusedMoE.__init__: as many experts as there are slots, in shared memory."""
        names = ("num_experts", "hidden_size", "intermediate_size", "layer_id")
        kwargs.update(zip(names, args, strict=False))
        if len(args) > len(names):
            raise UnsupportedError("positional arguments of FusedMoE", len(args), "install the pinned sglang 0.5.23")
        if kwargs["num_experts"] != self.checkpoint.n_experts:
            raise UnsupportedError(
                "experts per layer",
                kwargs["num_experts"],
                f"the checkpoint has {self.checkpoint.n_experts}: fused shared or redundant experts must be off",
            )
        kwargs["num_experts"] = self.settings.slots
        original(layer, **kwargs)
        check_layer(layer)
        self._into_slots(layer)

    def make_dispatcher(self, moe_runner_config: Any, quant_method: Any) -> ElasticDispatcher:
        """create_moe_dispatcher: ours, one for each layer."""
        del moe_runner_config, quant_method
        dispatcher = ElasticDispatcher(len(self.dispatchers))
        self.dispatchers.append(dispatcher)
        return dispatcher

    def load(self, original: Callable[..., None], layer: Any, *args: Any, **kwargs: Any) -> None:
        """FusedMoE.weight_loader: note the expert's name; slots are filled when an epoch names them, not here."""
        names = ("param", "loaded_weight", "weight_name", "shard_id", "expert_id")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if given["expert_id"] is None:
            original(layer, *args, **kwargs)
        else:
            self._named.add((layer.layer_id, given["expert_id"], given["shard_id"]))

    def load_fused(self, _original: Callable[..., None], layer: Any, *_args: Any, **_kwargs: Any) -> None:
        """FusedMoE.weight_loader_fused: not one expert at a time."""
        raise UnsupportedError(
            "use_weight_loader_fused", layer.layer_name, "serve a model whose checkpoint stores experts one by one"
        )

    def forward(self, original: Callable[..., torch.Tensor], layer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """FusedMoE.forward_impl: in as many rounds as the step has, so that no round exceeds the inbox."""
        rounds = self.rounds()
        if rounds == 1:
            return original(layer, *args, **kwargs)
        hidden, topk = _hidden_and_topk(*args, **kwargs)
        size = self.settings.max_tokens
        return torch.cat(
            [
                original(layer, hidden[at : at + size], _slice(topk, at, at + size))
                for at in range(0, rounds * size, size)
            ]
        )

    def compute(self, original: Callable[..., Any], layer: Any, dispatch_output: Any) -> Any:
        """FusedMoE.run_moe_core: SGLang's experts do not take zero rows, and ours are faster on a CPU."""
        rows = dispatch_output.hidden_states
        if rows.shape[0] == 0:
            return StandardCombineInput(rows)
        experts = self._experts.get(layer.layer_id)
        if experts is None:
            return original(layer, dispatch_output)
        topk = dispatch_output.topk_output
        return StandardCombineInput(experts(rows, topk.topk_ids.view(-1), topk.topk_weights))

    # --- around a step ------------------------------------------------------------------------------------------------

    rounds: Callable[[], int] = field(default=lambda: 1)
    """Rounds of the step under way; replaced when the engine joins its instance."""

    def serve_peers(self) -> None:
        """Take part in a step without a token of our own: the experts of every layer, and nothing of the model else."""
        for layer in self.layers:
            hidden = torch.empty((0, layer.hidden_size), dtype=layer.params_dtype)
            topk = StandardTopKOutput(
                torch.empty((0, layer.top_k), dtype=torch.float32),
                torch.empty((0, layer.top_k), dtype=torch.int32),
                None,
            )
            layer.forward_impl(hidden, topk)

    def finish(self) -> None:
        """The model is built and loaded: check that it is the one we think it is.

        Raises:
            CheckpointError: SGLang and we read the checkpoint's names differently.
            UnsupportedError: weights were moved out of their slots after loading.
        """
        ours = {
            (layer, expert, shard) for layer, expert in self.checkpoint.experts for shard in ("w1", "w2", "w3")
        }  # SGLang's shard ids: gate, down, up
        if self._named != ours:
            odd = sorted(self._named ^ ours)[:3]
            raise CheckpointError(f"SGLang and the engine name the checkpoint's experts differently, e.g. {odd}")
        for layer, dispatcher in zip(self.layers, self.dispatchers, strict=True):
            if layer.dispatcher is not dispatcher or not self._in_place(layer, dispatcher.layer):
                raise UnsupportedError(
                    "expert weights repacked after loading",
                    layer.layer_name,
                    "serve on a device that keeps them as stored",
                )
            if plain_swiglu(layer):
                self._experts[layer.layer_id] = SlotExperts(layer.w13_weight.data, layer.w2_weight.data)

    # --- slots --------------------------------------------------------------------------------------------------------

    def _into_slots(self, layer: Any) -> None:
        index = len(self.layers)
        dtype = _DTYPES.get(layer.params_dtype)
        if dtype is None:
            raise UnsupportedError("--dtype", layer.params_dtype, "start with --dtype float32 or bfloat16")
        if layer.w13_weight.device.type != "cpu":
            raise UnsupportedError("--device", layer.w13_weight.device.type, "start with --device cpu")
        if index >= len(self.checkpoint.layers) or layer.layer_id != self.checkpoint.layers[index]:
            raise CheckpointError(f"the model's layer {layer.layer_id} has experts, the checkpoint's has none")
        if self.memory is None:
            layout = SlotLayout(len(self.checkpoint.layers), self.settings.slots, self.checkpoint.shape(dtype))
            self.memory = SlotMemory.create(layout, f"eep-slots-{self.settings.rank}")
        w13, w2 = self._views(self.memory, index)
        for parameter, view in ((layer.w13_weight, w13), (layer.w2_weight, w2)):
            if parameter.data.nbytes != view.nbytes:
                raise CheckpointError(
                    f"layer {layer.layer_id}: SGLang's experts are {tuple(parameter.shape)}, the checkpoint's differ"
                )
            parameter.data = view.view(layer.params_dtype).view(parameter.shape)
        self.layers.append(layer)

    def _views(self, memory: SlotMemory, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        layout = memory.layout
        start, middle = index * layout.layer_bytes, layout.slots * layout.expert.w13_bytes
        block = torch.frombuffer(memory.map, dtype=torch.uint8)[start : start + layout.slots * layout.expert.nbytes]
        return block[:middle], block[middle:]

    def _in_place(self, layer: Any, index: int) -> bool:
        if self.memory is None:
            return False
        w13, w2 = self._views(self.memory, index)
        same: bool = layer.w13_weight.data_ptr() == w13.data_ptr() and layer.w2_weight.data_ptr() == w2.data_ptr()
        return same


def _hidden_and_topk(hidden_states: torch.Tensor, topk_output: Any, **_rest: Any) -> tuple[torch.Tensor, Any]:
    return hidden_states, topk_output


def _slice(topk: Any, start: int, stop: int) -> StandardTopKOutput:
    return StandardTopKOutput(topk.topk_weights[start:stop], topk.topk_ids[start:stop], None)
