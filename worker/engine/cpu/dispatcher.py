"""SGLang's dispatcher seam over the native group: logical expert ids in, rows for our slots out, and back.

SGLang's CPU experts take one row per (token, slot) pair with one slot id each; that is what ``dispatch`` gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.token_dispatcher.base import BaseDispatcher
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput, StandardDispatchOutput
from sglang.srt.layers.moe.topk import StandardTopKOutput

from native import _native
from worker.engine.errors import StepAbandonedError
from worker.engine.missing import leave_out

if TYPE_CHECKING:
    from native.plane import DataPlane
    from worker.engine.membership import Membership

_OK = _native.Status.OK


class ElasticDispatcher(BaseDispatcher):  # type: ignore[misc]  # SGLang is untyped
    """Dispatch and combine of one MoE layer."""

    def __init__(self, layer: int) -> None:
        """``layer`` counts MoE layers from 0. The group comes with ``attach``, once the model stands."""
        super().__init__()
        self.layer = layer
        self.group: DataPlane | None = None
        self.membership: Membership | None = None
        self.left_out = 0
        self._tokens: torch.Tensor | None = None

    def attach(self, plane: DataPlane) -> None:
        """Connect to the data plane."""
        self.group = plane

    def join(self, membership: Membership) -> None:
        """Its epochs say which experts are missing."""
        self.membership = membership

    def dispatch(self, hidden_states: torch.Tensor, topk_output: Any) -> StandardDispatchOutput:
        """Send each token to the ranks of its experts; what arrives for our slots, one row per (token, slot).

        Raises:
            StepAbandonedError: some peer's rows are missing, or the step was called off.
        """
        group = self.group
        if group is None:
            raise RuntimeError("a forward ran before the engine joined its instance; SGLang's start-up has changed")
        ids, weights = topk_output.topk_ids, topk_output.topk_weights
        if self.membership is not None and self.membership.current.missing:
            ids, weights = self._without_missing(ids, weights, self.membership)
        self._tokens = hidden_states
        arrived = group.dispatch(self.layer, hidden_states, ids, weights)
        if arrived.status != _OK:
            raise StepAbandonedError(arrived.status.name, arrived.suspects, self.layer)
        rows = torch.from_dlpack(arrived.rows)
        slots = torch.from_dlpack(arrived.slots).view(-1, 1)
        shares = torch.from_dlpack(arrived.weights).view(-1, 1)
        return StandardDispatchOutput(rows, None, StandardTopKOutput(shares, slots, None))

    def combine(self, combine_input: StandardCombineInput) -> torch.Tensor:
        """Send the weighted outputs back and add them up: [tokens, hidden].

        Raises:
            StepAbandonedError: as ``dispatch``.
        """
        group, tokens = self.group, self._tokens
        if group is None or tokens is None:
            raise RuntimeError("combine without dispatch")
        out = torch.empty_like(tokens)
        summed = group.combine(combine_input.hidden_states, out, weighted=True)
        if summed.status != _OK:
            raise StepAbandonedError(summed.status.name, summed.suspects, self.layer)
        return out

    def _without_missing(
        self, ids: torch.Tensor, weights: torch.Tensor, membership: Membership
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The routing without experts that have no live copy in this layer."""
        lost = [expert for layer, expert in membership.current.missing if layer == self.layer]
        if not lost:
            return ids, weights
        ids, weights, left_out = leave_out(ids, weights, lost)
        self.left_out += left_out
        return ids, weights
