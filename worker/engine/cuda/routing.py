"""What is done to a routing before it is dispatched, as device operations that a graph can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from worker.engine.missing import without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.vocabulary import Expert, Layer


class StepWords:
    """Device memory that captured dispatchers read: how many rows are real, and which experts are gone.

    The host writes it between steps, on the stream that then replays.
    """

    def __init__(self, *, layers: int, experts: int, best_effort: bool, device: torch.device) -> None:
        """``best_effort``: experts without a live copy are taken out of the routing."""
        self._every = torch.iinfo(torch.int32).max
        self._real = torch.full((), self._every, dtype=torch.int32, device=device)
        self._gone = torch.zeros((layers, experts + 1), dtype=torch.bool, device=device) if best_effort else None
        self._left_out = torch.zeros(layers, dtype=torch.int64, device=device)
        self._shown: tuple[tuple[Layer, Expert], ...] = ()

    def write(self, missing: Sequence[tuple[Layer, Expert]], *, rows: int | None) -> None:
        """Before a step: ``rows`` that are real in a padded decode, None when all are."""
        self._real.fill_(self._every if rows is None else rows)
        if self._gone is not None and tuple(missing) != self._shown:
            self._shown = tuple(missing)
            self._gone.zero_()
            if missing:
                layer, expert = torch.tensor(missing, device=self._gone.device).unbind(1)
                self._gone[layer, expert] = True

    def apply(self, layer: Layer, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The routing [tokens, k] without padded rows and without what is gone; -1 for both."""
        row = torch.arange(ids.shape[0], dtype=torch.int32, device=ids.device)
        ids = ids.masked_fill((row >= self._real)[:, None], -1)
        if self._gone is None:
            return ids, weights
        gone = self._gone[layer][ids.long()]  # -1 is the last place, which is never gone
        self._left_out[layer] += gone.sum()
        return without(ids, weights, gone)

    def left_out(self, layer: Layer) -> int:
        """(token, expert) pairs taken out so far in a layer; waits for the device."""
        return 0 if self._gone is None else int(self._left_out[layer])
