"""Best effort: a token goes on without the experts that have no live copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.vocabulary import Expert


def leave_out(
    ids: torch.Tensor, weights: torch.Tensor, lost: Sequence[Expert]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Take ``lost`` out of a routing and give their share to the token's other experts.

    Args:
        ids: expert ids [tokens, k].
        weights: the router's weights, float32 [tokens, k].
        lost: experts without a live copy.

    Returns:
        Ids with −1 for what is left out; weights, whose sum for each token is as before, or 0 when nothing remains; and
        how many (token, expert) pairs were left out.
    """
    gone = torch.isin(ids, torch.tensor(lost, dtype=ids.dtype))
    return *without(ids, weights, gone), int(gone.sum())


def without(ids: torch.Tensor, weights: torch.Tensor, gone: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for a mask [tokens, k] of what is gone; nothing here waits for a device, so it can be captured."""
    kept = weights.masked_fill(gone, 0.0)
    total, rest = weights.sum(-1, keepdim=True), kept.sum(-1, keepdim=True)
    share = torch.where(rest > 0, total / rest.clamp_min(torch.finfo(weights.dtype).tiny), 0.0)
    return ids.masked_fill(gone, -1), kept * share
