"""What planning costs in time, with EPLB's time for the same question beside it. Nothing else may run meanwhile."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from controlplane.planner import contingencies, plan, repair
from tools.benchmarks.placement import baseline
from tools.benchmarks.placement.cases import Case, eplb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIZES = ((64, 5), (64, 8), (320, 2))
QUICK = ((64, 5), (64, 8))


def milliseconds(work: Callable[[], Any], *, runs: int = 5) -> tuple[float, Any]:
    """Fastest of ``runs`` calls (what else runs on the machine only ever adds), and what the last one gave."""
    taken, answer = [], None
    for _ in range(runs):
        start = time.perf_counter()
        answer = work()
        taken.append((time.perf_counter() - start) * 1e3)
    return round(min(taken), 2), answer


def times(names: Iterable[str], *, seed: int, quick: bool) -> list[dict[str, Any]]:
    """The contracts on time, each for every load."""
    return [_row(Case(*size, name, seed)) for name in names for size in (QUICK if quick else SIZES)]


def _row(case: Case) -> dict[str, Any]:
    topology, load = case.topology, case.load
    row = case.about()
    row["plan_ms"], made = milliseconds(partial(plan, topology, load), runs=9)
    live = made.placement
    # Whichever rank is lost: the first one, and a whole host of them.
    for what, lost in (("repair_ms", 1), ("repair_host_ms", 8)):
        row[what], _ = milliseconds(partial(repair, topology.without(range(lost)), load, live=live), runs=9)
    if case.ranks <= 64:  # the contract names 64 ranks
        row["contingencies_ms"], prepared = milliseconds(
            partial(contingencies, topology, load, live=live, hosts=False), runs=3
        )
        row["contingencies"] = len(prepared)
    for policy in (baseline.DEFAULT, baseline.GLOBAL):
        ask = partial(eplb, case, load, list(range(case.ranks)), policy)
        row[f"eplb_{policy.name}_ms"], _ = milliseconds(ask, runs=1)
    return row
