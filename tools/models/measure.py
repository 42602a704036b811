"""What a model knows and how it loads its experts: perplexity on held-out text, tokens per expert and layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tools.models.torch_modules import Qwen3MoeForCausalLM, torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LENGTH = 256
"""Tokens per measured sequence."""


@dataclass(frozen=True)
class Measured:
    """Over held-out text, float32."""

    held_out_perplexity: float
    uniform_perplexity: int
    """Of a model that knows nothing: the vocabulary's size."""
    expert_load_max_over_mean: tuple[float, ...]
    """Per layer: tokens of the busiest expert ÷ mean over experts."""
    expert_load_min_over_mean: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(folder: Path, documents: Sequence[list[int]], *, sequences: int = 64) -> Measured:
    """Teacher-forced over the first ``sequences`` × 256 tokens of ``documents`` laid end to end."""
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    flat = [token for document in documents for token in document][: sequences * _LENGTH]
    batch = torch.tensor(flat[: len(flat) // _LENGTH * _LENGTH]).view(-1, _LENGTH)
    with torch.no_grad():
        out = model(input_ids=batch, labels=batch, output_router_logits=True, use_cache=False)
        logits = out.logits[:, :-1].reshape(-1, model.config.vocab_size)
        loss = float(torch.nn.functional.cross_entropy(logits, batch[:, 1:].reshape(-1)))
    counts = [_counts(scores, model.config.num_experts_per_tok) for scores in out.router_logits]
    return Measured(
        held_out_perplexity=round(math.exp(loss), 2),
        uniform_perplexity=int(model.config.vocab_size),
        expert_load_max_over_mean=tuple(round(float(each.max() / each.mean()), 2) for each in counts),
        expert_load_min_over_mean=tuple(round(float(each.min() / each.mean()), 4) for each in counts),
    )


def _counts(scores: torch.Tensor, chosen: int) -> torch.Tensor:
    experts = scores.shape[-1]
    picked = scores.reshape(-1, experts).topk(chosen, dim=-1).indices
    return torch.bincount(picked.flatten(), minlength=experts).float()
