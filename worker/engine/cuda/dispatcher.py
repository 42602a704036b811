"""SGLang's dispatcher seam over a CUDA data plane: shapes never depend on what arrives, so a graph can hold it.

bf16 experts run through SGLang's triton MoE: one row per (token, slot) pair with room for all that can come, and -1 as
the slot of room that no row took, which triton skips. fp8 experts run through DeepGEMM's masked layout, in the form in
which SGLang takes it from DeepEP's low-latency dispatch: [slots, capacity, hidden], a count for each slot, and scales.

Nothing here waits or raises for what a peer did: a step's status is read when the step is over (``CudaDevice.settle``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.token_dispatcher.base import BaseDispatcher
from sglang.srt.layers.moe.token_dispatcher.deepep import DeepEPLLDispatchOutput
from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
from sglang.srt.layers.moe.topk import StandardTopKOutput

if TYPE_CHECKING:
    from native.plane import Arrived, DataPlane
    from worker.engine.cuda.routing import StepWords
    from worker.engine.membership import Membership


class CudaDispatcher(BaseDispatcher):  # type: ignore[misc]  # SGLang is untyped
    """Dispatch and combine of one MoE layer."""

    weighted = True
    """Whether the experts multiply their output by the router's weights."""

    def __init__(self, layer: int) -> None:
        """``layer`` counts MoE layers from 0."""
        super().__init__()
        self.layer = layer
        self._plane: DataPlane | None = None
        self._words: StepWords | None = None
        self._tokens: torch.Tensor | None = None

    @property
    def left_out(self) -> int:
        """(token, expert) pairs that best effort took out of the routing."""
        return 0 if self._words is None else self._words.left_out(self.layer)

    def use(self, words: StepWords) -> None:
        """Where the words of each step are."""
        self._words = words

    def attach(self, plane: DataPlane) -> None:
        """Connect to the data plane."""
        self._plane = plane

    def join(self, membership: Membership) -> None:
        """Epochs come to a captured step through ``StepWords``."""

    def dispatch(self, hidden_states: torch.Tensor, topk_output: Any) -> Any:
        """Send each token to the ranks of its experts; what SGLang's experts take."""
        if self._plane is None or self._words is None:
            raise RuntimeError("a forward ran before every MoE layer stood; SGLang's start-up has changed")
        ids, weights = self._words.apply(self.layer, topk_output.topk_ids, topk_output.topk_weights.float())
        self._tokens = hidden_states.contiguous()
        return self.lay_out(
            self._plane.dispatch(self.layer, self._tokens, ids.contiguous(), weights.contiguous()), ids, weights
        )

    def combine(self, combine_input: Any) -> torch.Tensor:
        """Send outputs back and add them up: [tokens, hidden]."""
        if self._plane is None or self._tokens is None:
            raise RuntimeError("combine without dispatch")
        out = torch.empty_like(self._tokens)
        self._plane.combine(combine_input.hidden_states, out, weighted=self.weighted)
        return out

    def lay_out(self, arrived: Arrived, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        """What a round brought, in SGLang's words."""
        del ids, weights
        return pairs_for_triton(arrived)


class MaskedDispatcher(CudaDispatcher):
    """Dispatch and combine of one MoE layer with fp8 experts."""

    weighted = False

    def __init__(self, layer: int, *, expected: int, scale: float) -> None:
        """``expected``: rows of a slot, for DeepGEMM's choice of a kernel; ``scale``: of the routed experts' sum."""
        super().__init__(layer)
        self._expected = expected
        self._scale = scale

    def lay_out(self, arrived: Arrived, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        """Masked layout."""
        return masked_for_deep_gemm(arrived, ids, weights, expected=self._expected)

    def combine(self, combine_input: Any) -> torch.Tensor:
        """The triton experts apply the model's scale of routed experts; DeepGEMM's masked ones leave it to us."""
        out = super().combine(combine_input)
        return out if self._scale == 1.0 else out.mul_(self._scale)


def pairs_for_triton(arrived: Any) -> StandardDispatchOutput:
    """One row, one slot and one weight for each pair."""
    routing = StandardTopKOutput(arrived.weights.view(-1, 1), arrived.slots.view(-1, 1), None)
    return StandardDispatchOutput(arrived.rows, None, routing)


def masked_for_deep_gemm(
    arrived: Any, ids: torch.Tensor, weights: torch.Tensor, *, expected: int
) -> DeepEPLLDispatchOutput:
    """Rows by slot. SGLang disposes of the tensors that it is given (``dispose_tensor``), so it gets aliases."""
    return DeepEPLLDispatchOutput(
        hidden_states=arrived.rows.detach(),
        hidden_states_scale=arrived.scales.detach(),
        topk_ids=ids,
        topk_weights=weights,
        masked_m=arrived.counts,
        expected_m=expected,
    )
