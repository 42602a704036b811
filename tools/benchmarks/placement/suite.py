"""All parts of the planner's benchmark: what can run side by side does, and what is timed runs alone afterwards.

Figures of balance and bytes do not depend on who else uses the machine. The parts are independent and go to one process
for each core, the longest first.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from typing import Any

import torch

from controlplane.planner import Constraints, Topology, plan, repair
from schemas.policy import Survivability
from tools.benchmarks.placement import baseline
from tools.benchmarks.placement.cases import EXPERT_BYTES, QUICK, SIZES, Case, study
from tools.benchmarks.placement.day import Day, Events, Ledger, ours, theirs
from tools.benchmarks.placement.loads import EXPERTS, LAYERS, SHAPES, lognormal
from tools.benchmarks.placement.timing import times
from tools.benchmarks.placement.transfers import SHAPES as LOSSES
from tools.benchmarks.placement.transfers import transfers

MINUTES = 120
"""After which the benchmark gives up. Most of it goes to budgets: to spend them, and to bound what they can reach."""
POLL_S = 5.0
"""Between two looks at the clock."""


class Patience:
    """Waits for parts, so many seconds in all. While the whole benchmark is stopped (SIGSTOP) no time passes for it."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def result(self, part: Future[Any]) -> Any:
        """What the part gives.

        Raises:
            TimeoutError: no time is left.
        """
        while not part.done():
            if self.left <= 0:
                raise TimeoutError("the benchmark's time is over")
            start, most = time.monotonic(), min(POLL_S, self.left)
            wait([part], timeout=most)
            self.left -= min(most, time.monotonic() - start)
        return part.result()


def measure(*, seed: int, quick: bool) -> dict[str, Any]:
    """Everything, for JSON."""
    names = ("lognormal", "recorded") if quick else tuple(SHAPES)
    sizes = QUICK if quick else SIZES
    start, patience = time.perf_counter(), Patience(MINUTES * 60)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        story = _day(seed=seed, quick=quick)
        anew = pool.submit(_replanned, story)
        studies = [pool.submit(study, Case(*size, name, seed)) for size in sorted(sizes)[::-1] for name in names]
        walks = [pool.submit(_walked, day) for day in ([story] if quick else [story, _declared(seed=seed)])]
        loaded = [pool.submit(transfers, *loss, seed=seed) for loss in LOSSES]
        same = pool.submit(deterministic, seed=seed)
        studied = [patience.result(part) for part in studies]
        days = [patience.result(part) for part in walks]
        days[0] |= patience.result(anew)
        rows = [row for part in loaded for row in patience.result(part)]
        equal = patience.result(same)
    return {
        "seconds_side_by_side": round(time.perf_counter() - start, 1),
        "placement": sorted((row for row, _ in studied), key=_order),
        "repair": sorted((row for _, losses in studied for row in losses), key=_order),
        "time": times(names, seed=seed, quick=quick),
        "sources": rows,
        "deterministic": equal,
        "day": days,
    }


def _order(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["ranks"], row["slots"], list(SHAPES).index(row["load"])


def deterministic(*, seed: int) -> bool:
    """Equal bytes from repeated calls with one and with several threads."""
    topology, load = Topology.uniform(ranks=64, slots=5), lognormal(seed=seed)
    digests = set()
    for threads in (1, 2, 4):
        live = plan(topology, load, constraints=Constraints(threads=threads)).placement
        wish = Constraints(threads=threads, movement_budget=100)
        mended = repair(topology.without([1, 9]), load, live=live, constraints=wish).placement
        digests.add((live.digest, mended.digest))
    return len(digests) == 1


def _day(*, seed: int, quick: bool) -> Day:
    """Twenty failures in a day, as EPLB meets them: no survivability declared."""
    return Day(ranks=32, slots=16, layers=8 if quick else LAYERS, experts=EXPERTS, seed=seed)


def _declared(*, seed: int) -> Day:
    """The same with a copy of every expert on a second rank at all times."""
    return Day(ranks=32, slots=18, layers=LAYERS, experts=EXPERTS, seed=seed, survivability=Survivability.RANK)


def _walked(day: Day) -> dict[str, Any]:
    mine = ours(day, Events.of(day))
    return {
        "ranks": day.ranks,
        "slots": day.slots,
        "layers": day.layers,
        "survivability": str(day.survivability),
        "ticks": day.ticks,
        "failures": day.failures,
        "ours": _with_bytes(mine),
        "balance_by_tick": [round(value, 4) for value in mine.balance],
    }


def _replanned(day: Day) -> dict[str, Any]:
    def replan(load: Any, ranks: Any) -> Any:
        return baseline.place(load, list(ranks), max_ranks=day.ranks, slots=day.slots, policy=baseline.GLOBAL)

    other = theirs(day, Events.of(day), replan, baseline.moved, every=4)
    return {
        "eplb_global": _with_bytes(other),
        "eplb_balance_by_tick": [round(value, 4) for value in other.balance],
    }


def _with_bytes(ledger: Ledger) -> dict[str, Any]:
    return {**ledger.summary(), "gigabytes": round(ledger.writes * EXPERT_BYTES / 1e9, 1)}
