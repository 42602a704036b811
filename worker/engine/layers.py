"""MoE layers whose experts are slots: what replaces SGLang's own construction, loading and computation of experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.topk import StandardTopKOutput

from worker.engine.errors import CheckpointError, UnsupportedError
from worker.engine.slots import SlotLayout

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.checkpoint import Checkpoint
    from worker.engine.device import Device, Dispatcher
    from worker.engine.settings import EngineSettings
    from worker.engine.slots import SlotMemory

    Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class MoELayers:
    """The MoE layers of the model under construction, in order.

    Attributes:
        settings: this rank's.
        checkpoint: where the model's experts are; says how many MoE layers there will be.
        device: what is done with tensors.
        memory: the slots; made when the first layer tells its dtype.
        layers: SGLang's FusedMoE modules by MoE layer index.
        dispatchers: ours, in the same order.
    """

    settings: EngineSettings
    checkpoint: Checkpoint
    device: Device
    memory: SlotMemory | None = None
    layers: list[Any] = field(default_factory=list)
    dispatchers: list[Dispatcher] = field(default_factory=list)
    _experts: dict[int, Experts] = field(default_factory=dict)
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
        self.device.check_layer(layer)
        self._into_slots(layer)
        if len(self.layers) == len(self.checkpoint.layers):
            self.built()

    def make_dispatcher(self, moe_runner_config: Any, quant_method: Any) -> Dispatcher:
        """create_moe_dispatcher: ours, one for each layer."""
        del quant_method
        dispatcher = self.device.dispatcher(len(self.dispatchers), config=moe_runner_config)
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
        """FusedMoE.run_moe_core: SGLang's experts do not take zero rows, and a device may have better ones."""
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
    built: Callable[[], None] = field(default=lambda: None)
    """Called when the last MoE layer stands."""

    def serve_peers(self) -> None:
        """Take part in a step without a token of our own: the experts of every layer, and nothing of the model else."""
        self.device.idle(self.empty_step, rounds=self.rounds())

    def empty_step(self) -> None:
        """Every layer's rounds with no tokens."""
        for layer in self.layers:
            layer.forward_impl(*self.device.empty_batch(layer))

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
        for index, (layer, dispatcher) in enumerate(zip(self.layers, self.dispatchers, strict=True)):
            kept = self.memory is not None and self.device.in_place(layer, self.memory, index)
            if layer.dispatcher is not dispatcher or not kept:
                raise UnsupportedError(
                    "expert weights repacked after loading",
                    layer.layer_name,
                    "serve on a device, and with a MoE runner, that keeps them as stored",
                )
            experts = self.device.experts(layer)
            if experts is not None:
                self._experts[layer.layer_id] = experts

    # --- slots --------------------------------------------------------------------------------------------------------

    def _into_slots(self, layer: Any) -> None:
        index = len(self.layers)
        dtype = self.device.slot_dtype(layer)
        if index >= len(self.checkpoint.layers) or layer.layer_id != self.checkpoint.layers[index]:
            raise CheckpointError(f"the model's layer {layer.layer_id} has experts, the checkpoint's has none")
        if self.memory is None:
            layout = SlotLayout(len(self.checkpoint.layers), self.settings.slots, self.checkpoint.shape(dtype))
            self.memory = self.device.slots(layout, f"eep-slots-{self.settings.rank}")
        self.device.place(layer, self.memory, index)
        self.layers.append(layer)


def _hidden_and_topk(hidden_states: torch.Tensor, topk_output: Any, **_rest: Any) -> tuple[torch.Tensor, Any]:
    return hidden_states, topk_output


def _slice(topk: Any, start: int, stop: int) -> StandardTopKOutput:
    return StandardTopKOutput(topk.topk_weights[start:stop], topk.topk_ids[start:stop], None)
