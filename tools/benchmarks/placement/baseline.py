"""DeepSeek's EPLB as shipped inside the installed sglang, measured with the same yardstick as our planner."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from schemas.placement import EMPTY, Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


def _shipped() -> Any:
    """The function of sglang's own file; importing the whole package would need a GPU's libraries."""
    package = find_spec("sglang")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("sglang is not installed: run tools/doctor")
    file = Path(package.submodule_search_locations[0]) / "srt/eplb/eplb_algorithms/deepseek.py"
    spec = spec_from_file_location("eplb_deepseek", file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file}: not found; this benchmark knows sglang 0.5.23")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rebalance_experts


rebalance_experts = _shipped()

GROUPS = 8
"""Expert groups of DeepSeek-V3, which the default policy keeps on one node."""


@dataclass(frozen=True)
class Policy:
    """One way to call EPLB."""

    name: str
    hierarchical: bool


DEFAULT = Policy("default", hierarchical=True)
GLOBAL = Policy("global", hierarchical=False)


def place(
    load: npt.NDArray[np.float64], ranks: Sequence[int], *, max_ranks: int, slots: int, policy: Policy
) -> Placement:
    """EPLB's placement on ``ranks``; replicas share their expert's load evenly, as EPLB assumes.

    The default policy is hierarchical where the groups divide by the nodes and global elsewhere, as in sglang.
    """
    nodes = max(1, len(ranks) // 8)
    hierarchical = policy.hierarchical and len(ranks) % 8 == 0 and GROUPS % nodes == 0
    physical, _, _ = rebalance_experts(
        torch.from_numpy(load), len(ranks) * slots, GROUPS, nodes if hierarchical else 1, len(ranks), hierarchical
    )
    table = np.full((len(load), max_ranks, slots), EMPTY, dtype=np.uint16)
    table[:, list(ranks)] = physical.numpy().reshape(len(load), len(ranks), slots)
    return Placement(slots=table, weights=np.where(table == EMPTY, 0, 1).astype(np.uint16), n_experts=load.shape[1])


def moved(before: Placement, after: Placement) -> int:
    """Experts that a rank has to load because it does not hold them yet, in whichever slot (the fairest count)."""
    return int(np.count_nonzero(_held(after) & ~_held(before)))


def _held(placement: Placement) -> npt.NDArray[np.bool_]:
    held = np.zeros((placement.n_layers, placement.max_ranks, placement.n_experts), dtype=np.bool_)
    layer, rank, slot = np.nonzero(placement.slots != EMPTY)
    held[layer, rank, placement.slots[layer, rank, slot]] = True
    return held
