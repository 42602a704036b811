"""Expert loads to plan for: synthetic ones of known shape, and what the shipped model really did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

LAYERS = 58
EXPERTS = 256
RECORDED = Path(__file__).with_name("routing.json")


def zipf(*, seed: int, layers: int = LAYERS, experts: int = EXPERTS) -> npt.NDArray[np.float64]:
    """[layers, experts] with load 1 / k for the k-th expert, in another order in each layer."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(1 / np.arange(1, experts + 1)) for _ in range(layers)])


def lognormal(*, seed: int, layers: int = LAYERS, experts: int = EXPERTS) -> npt.NDArray[np.float64]:
    """[layers, experts], σ = 1."""
    return np.random.default_rng(seed).lognormal(0, 1, (layers, experts))


def recorded() -> npt.NDArray[np.float64]:
    """[windows, layers, experts] token counts of the shipped model on held-out text (``record.py``)."""
    return np.array(json.loads(RECORDED.read_text(encoding="utf-8"))["windows"], dtype=np.float64)


def real(*, seed: int, layers: int = LAYERS, experts: int = EXPERTS) -> npt.NDArray[np.float64]:
    """[layers, experts]: each layer is put together from recorded routings of 32 experts, as many as it takes."""
    each = recorded().reshape(-1, recorded().shape[-1])
    groups = experts // each.shape[1]
    picked = np.random.default_rng(seed).permutation(len(each))[: layers * groups]
    return each[picked].reshape(layers, experts)


def drift(load: npt.NDArray[np.float64], *, sigma: float, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """The load some minutes later: every expert's changes by a log-normal factor."""
    return load * generator.lognormal(0, sigma, load.shape)


def drifted(*, seed: int) -> npt.NDArray[np.float64]:
    """Log-normal σ 1 after an hour of drift (six times σ 0.1)."""
    generator = np.random.default_rng(seed)
    load = lognormal(seed=seed)
    for _ in range(6):
        load = drift(load, sigma=0.1, generator=generator)
    return load


SHAPES: dict[str, Callable[..., npt.NDArray[np.float64]]] = {
    "zipf": zipf,
    "lognormal": lognormal,
    "drifting": drifted,
    "recorded": real,
}
