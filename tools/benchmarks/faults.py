"""kill -9 at a random instant: when do survivors leave the step, whom do they accuse, how long does link repair take.

Four ranks run steps without pause; one is killed; the others leave whatever they wait in. Then a new process takes
its place: the survivors fence the old one's memory, link the new one, and all cross into the next epoch. Scenarios: an
otherwise idle machine, one with busy processes on every processor, and victims of 0.7 GB, whose memory takes the kernel
tens of milliseconds to free.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from native import _native
from tools.benchmarks.fleet import Fleet, Seat
from tools.benchmarks.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Iterator

RANKS = 4
LAYERS = 4
TOKENS = 8
TOPK = 4
EXPERTS = 16
BALLAST_BYTES = 700_000_000
_LEFT_WITHIN_S = 60.0
_STEPS_FIRST = 3


@dataclass
class Tally:
    """What the trials of one scenario showed."""

    trials: int = 0
    left_ms: list[float] = field(default_factory=list)
    repair_ms: list[float] = field(default_factory=list)
    evidence: dict[str, int] = field(default_factory=dict)
    false_accusations: int = 0
    rounds: int = 0

    def summary(self) -> dict[str, Any]:
        """Medians and tails."""
        return {
            "trials": self.trials,
            "left_ms_median": statistics.median(self.left_ms),
            "left_ms_p99": float(np.percentile(self.left_ms, 99)),
            "left_ms_max": max(self.left_ms),
            "false_accusations": self.false_accusations,
            "rounds_before_kills": self.rounds,
            "evidence": self.evidence,
            "link_repair_ms_median": statistics.median(self.repair_ms),
            "link_repair_ms_p99": float(np.percentile(self.repair_ms, 99)),
        }


# --- inside a rank ----------------------------------------------------------------------------------------------------


def enter(seat: Seat, epoch: int, incarnations: list[int]) -> None:
    """Cross into an epoch in which expert e lives on rank e % ranks."""
    experts = np.arange(EXPERTS * LAYERS, dtype=np.uint16) % EXPERTS
    starts = np.arange(LAYERS, dtype=np.int32)[:, None] * EXPERTS
    seat.group.stage(
        _native.Table(
            epoch=epoch,
            active=[rank for rank, incarnation in enumerate(incarnations) if incarnation],
            incarnations=incarnations,
            offsets=starts + np.arange(EXPERTS + 1, dtype=np.int32),
            ranks=experts % RANKS,
            slots=experts // RANKS,
            weights=np.ones(EXPERTS * LAYERS, dtype=np.uint16),
        )
    )
    seat.group.activate(epoch)


def step_until_broken(seat: Seat) -> tuple[int, list[int], list[str], int]:
    """Steps without pause; (monotonic ns of leaving, suspects, evidence, rounds)."""
    shape = seat.group.shape
    generator = np.random.default_rng(seat.rank)
    x = generator.integers(0, 2**14, (TOKENS, shape.hidden), dtype=np.uint16)
    ids = np.argsort(generator.random((TOKENS, EXPERTS)), axis=1)[:, :TOPK].astype(np.int32)
    weights = np.ones((TOKENS, TOPK), dtype=np.float32)
    out = np.empty_like(x)
    while True:
        seat.control.step += 1
        result: Any = seat.group.sync(_native.SyncRow(tokens=TOKENS))
        for layer in range(LAYERS):
            if result.status != _native.Status.OK:
                break
            result = dispatched = seat.group.dispatch(layer, x, ids, weights)
            if dispatched.status == _native.Status.OK:
                result = seat.group.combine(dispatched.rows, out, weighted=False)
        if result.status != _native.Status.OK:
            left = time.monotonic_ns()
            word = seat.control.fault()
            return left, list(result.suspects), [kind.name for kind in word.evidence], seat.group.round


# --- the parent -------------------------------------------------------------------------------------------------------


def _burn() -> None:
    while True:
        sum(range(10_000))


@contextmanager
def busy_processors(processes: int) -> Iterator[None]:
    """Processes that never sleep, beside the ranks."""
    burning = [multiprocessing.get_context("fork").Process(target=_burn, daemon=True) for _ in range(processes)]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.join()


def _repair(fleet: Fleet, rank: int, *, ballast_bytes: int) -> list[float]:
    """A new process in the place of a dead one; ms that each pair took, both directions, descriptors handed over."""
    fleet.start(rank, ballast_bytes=ballast_bytes)
    spent = []
    for other in fleet.ranks:
        if other != rank:
            began = time.monotonic_ns()
            fleet.link(rank, other, fresh=True)
            fleet.link(other, rank)
            spent.append((time.monotonic_ns() - began) / 1e6)
    return spent


def run_trial(fleet: Fleet, epoch: int, tally: Tally, dice: random.Random, *, ballast_bytes: int) -> None:
    """One kill and one repair."""
    fleet.call_all(enter, epoch, [fleet.ranks[rank].incarnation for rank in range(RANKS)])
    victim = fleet.ranks[dice.randrange(RANKS)]
    began = {rank: fleet.ranks[rank].control.step for rank in fleet.ranks}
    for rank in fleet.ranks.values():
        rank.begin(step_until_broken)
    while any(fleet.ranks[rank].control.step < began[rank] + _STEPS_FIRST for rank in began):
        time.sleep(0.001)
    time.sleep(dice.uniform(0.005, 0.03))
    killed = time.monotonic_ns()
    os.kill(victim.pid, signal.SIGKILL)
    survivors = [rank for rank in fleet.ranks.values() if rank is not victim]
    answers = [rank.answer(_LEFT_WITHIN_S) for rank in survivors]
    victim.kill()
    tally.trials += 1
    tally.left_ms.append((max(left for left, *_ in answers) - killed) / 1e6)
    for left, suspects, evidence, rounds in answers:
        tally.false_accusations += suspects != [victim.rank] or left < killed
        tally.rounds += rounds
        for kind in evidence:
            tally.evidence[kind] = tally.evidence.get(kind, 0) + 1
    tally.repair_ms += _repair(fleet, victim.rank, ballast_bytes=ballast_bytes)


def run_scenario(trials: int, *, load: bool, ballast_bytes: int = 0, seed: int) -> Tally:
    """So many trials on one fleet, whose ranks are replaced one by one."""
    shape = _native.Shape(
        max_ranks=RANKS,
        max_tokens=128,
        hidden=2048,
        max_topk=TOPK,
        max_slots=EXPERTS // RANKS,
        n_experts=EXPERTS,
        n_layers=LAYERS,
        dtype=_native.DType.BFLOAT16,
    )
    tally, dice = Tally(), random.Random(seed)
    with Fleet(shape) as fleet, busy_processors(2 * (os.cpu_count() or 1) if load else 0):
        for rank in range(RANKS):
            fleet.start(rank, ballast_bytes=ballast_bytes)
        fleet.link_all(range(RANKS))
        for epoch in range(1, trials + 1):
            run_trial(fleet, epoch, tally, dice, ballast_bytes=ballast_bytes)
    return tally


def main(argv: list[str]) -> int:
    """Run the benchmark; 0 when nobody was accused falsely."""
    parser = argparse.ArgumentParser(prog="tools/bench faults", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--trials", type=int, default=200, help="kills idle, and as many under load")
    parser.add_argument("--large-trials", type=int, default=20, help="kills of 0.7 GB processes, idle and under load")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    scenarios = {
        "idle": {"trials": options.trials, "load": False},
        "load": {"trials": options.trials, "load": True},
        "idle_large": {"trials": options.large_trials, "load": False, "ballast_bytes": BALLAST_BYTES},
        "load_large": {"trials": options.large_trials, "load": True, "ballast_bytes": BALLAST_BYTES},
    }
    result: dict[str, Any] = {**provenance("tools/bench faults"), "ranks": RANKS, "seed": options.seed}
    for name, arguments in scenarios.items():
        tally = run_scenario(seed=options.seed, **arguments)
        result[name] = {**tally.summary(), "samples": asdict(tally)}
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in tally.summary().items()}
        print(name, json.dumps(shown))
    result["false_accusations"] = sum(result[name]["false_accusations"] for name in scenarios)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["false_accusations"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
