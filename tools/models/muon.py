"""Muon: momentum whose update is made orthogonal, so that small matrices learn in few steps.

Method: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the quintic Newton–Schulz
coefficients are theirs. torch's own takes matrices only; experts here are stacks [experts, rows, columns].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon:
    """One step over every given weight [..., rows, columns].

    Attributes:
        rate: learning rate; the update's root mean square is 0.2 × rate whatever the shape, like AdamW's.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], *, momentum: float = 0.95, decay: float = 0.1) -> None:
        self.rate = 0.0
        self._weights = list(weights)
        self._momentum = momentum
        self._decay = decay
        self._averages = [torch.zeros_like(weight) for weight in self._weights]

    def step(self) -> None:
        """Apply the gradients and forget them."""
        with torch.no_grad():
            for weight, average in zip(self._weights, self._averages, strict=True):
                if weight.grad is not None:
                    self._update(weight, average)

    def _update(self, weight: torch.nn.Parameter, average: torch.Tensor) -> None:
        average.lerp_(weight.grad, 1 - self._momentum)
        update = orthogonal(weight.grad.lerp_(average, self._momentum))
        scale = 0.2 * max(weight.shape[-2:]) ** 0.5
        weight.mul_(1 - self.rate * self._decay).add_(update, alpha=-self.rate * scale)
        weight.grad = None


def orthogonal(matrix: torch.Tensor, *, rounds: int = 5) -> torch.Tensor:
    """The nearest thing to U·Vᵀ of each matrix [..., rows, columns] that ``rounds`` of Newton–Schulz give."""
    a, b, c = _QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
