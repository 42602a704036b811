"""Steady state: what gateway, agents, control plane and etcd cost beside the bare ranks, on one cluster in one run.

The same ranks serve the same load in turns: through the gateway with all of it running, and directly with gateway,
agents, control plane and etcd stopped (SIGSTOP). Turns are paired and the order alternates: drift falls on both. With
more ranks than cores the throughput of single turns differs by a quarter either way: there are many, and an interval is
told beside the median.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tools.benchmarks.provenance import provenance
from tools.loadgen import Load, Outcome, Target, Workload
from tools.mainjob.instance import SHIPPED_MODEL, Instance, Plan
from tools.mainjob.main import START_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.loadgen import Answer

_WARM_S = 1.5
_LEASE_S = 120
"""Longer than any turn: a stopped agent must not lose its rank."""


@dataclass(frozen=True)
class Turn:
    """One measured stretch of one way.

    Attributes:
        tokens_per_s: output tokens of all clients.
        step_ms: median gap between two tokens of an answer.
        cpu_s: processor time by kind of program, per second of the turn.
    """

    tokens_per_s: float
    step_ms: float
    cpu_s: dict[str, float]


class Ways:
    """The two ways to the same ranks."""

    def __init__(self, instance: Instance, options: argparse.Namespace) -> None:
        """Serve ``options.concurrency`` clients for ``options.turn`` seconds a turn."""
        self._instance = instance
        self._options = options
        self._number = 0
        self._ranks: tuple[str, ...] = ()

    async def find_ranks(self) -> None:
        """Learn where the ranks answer."""
        registrations = await self._instance.registrations()
        self._ranks = tuple(registrations[rank].serve_url for rank in sorted(registrations))

    async def whole(self) -> Turn:
        """Through the gateway."""
        return await self._turn(tuple(self._instance.gateway_urls))

    async def bare(self) -> Turn:
        """Directly, as many clients at each rank, while nothing but the ranks runs."""
        with self._stopped():
            return await self._turn(self._ranks)

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        pids = [program.pid for program in self._instance.household.programs.values()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(pids):  # etcd first of all would be asked by nobody
                os.kill(pid, signal.SIGCONT)

    async def _turn(self, urls: tuple[str, ...]) -> Turn:
        self._number += 1
        workload = Workload(self._options.model, seed=self._number, answer_tokens=(96, 96))
        load = Load(Target(urls), workload, self._options.concurrency)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(_WARM_S)
        used, began_ns = self._used(), time.monotonic_ns()
        await asyncio.sleep(self._options.turn)
        after, ended_ns = self._used(), time.monotonic_ns()
        load.stop()
        answers = await running
        broken = [answer.error or answer.outcome for answer in answers if answer.outcome is not Outcome.COMPLETE]
        if broken:
            raise RuntimeError(f"{len(broken)} answers broke off: {broken[0]}")
        seconds = (ended_ns - began_ns) / 1e9
        return Turn(
            count_between(answers, began_ns, ended_ns) / seconds,
            median_step_ms(answers, began_ns, ended_ns),
            {kind: (after[kind] - used[kind]) / seconds for kind in used},
        )

    def _used(self) -> dict[str, float]:
        """Processor seconds so far, by kind of program; engines are what agents started."""
        used: dict[str, float] = {}
        for name, program in self._instance.household.programs.items():
            process = psutil.Process(program.pid)
            kind = {"rank": "agents"}.get(name.split("-")[0], name.split("-")[0])
            used[kind] = used.get(kind, 0.0) + sum(process.cpu_times()[:2])
            for child in process.children(recursive=True):
                used["engines"] = used.get("engines", 0.0) + sum(child.cpu_times()[:2])
        return used


def count_between(answers: Sequence[Answer], began_ns: int, ended_ns: int) -> int:
    """Tokens that arrived in a stretch of time."""
    return sum(began_ns <= moment < ended_ns for answer in answers for moment in answer.arrived_ns)


def median_step_ms(answers: Sequence[Answer], began_ns: int, ended_ns: int) -> float:
    """Median gap between two tokens of an answer that both arrived in a stretch of time."""
    gaps = [
        (later - earlier) / 1e6
        for answer in answers
        for earlier, later in pairwise(answer.arrived_ns)
        if began_ns <= earlier and later < ended_ns
    ]
    return statistics.median(gaps) if gaps else 0.0


async def measure(options: argparse.Namespace) -> list[tuple[Turn, Turn]]:
    """Pairs of (whole, bare) turns on one cluster."""
    plan = Plan(
        ranks=options.ranks,
        model=options.model,
        worker={"lease_ttl_s": _LEASE_S, "progress_deadline_s": float(_LEASE_S)},
    )
    pairs = []
    async with Instance(plan) as instance:
        await instance.wait_members(set(range(plan.ranks)), within_s=START_S)
        await instance.gateways_ready(within_s=60.0)
        ways = Ways(instance, options)
        await ways.find_ranks()
        await ways.whole()  # pays for lazy imports and caches on both sides
        await ways.bare()
        for number in range(options.pairs):
            if number % 2:
                bare, whole = await ways.bare(), await ways.whole()
            else:
                whole, bare = await ways.whole(), await ways.bare()
            pairs.append((whole, bare))
            print(f"whole {whole.tokens_per_s:7.1f} tokens/s   bare {bare.tokens_per_s:7.1f}", flush=True)
    return pairs


def interval(costs: Sequence[float], *, times: int = 4000) -> tuple[float, float]:
    """Where the median lies in nine of ten drawings of as many pairs from these (bootstrap)."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(costs, k=len(costs))) for _ in range(times))
    return round(medians[times // 20], 4), round(medians[-times // 20], 4)


def summary(pairs: Sequence[tuple[Turn, Turn]]) -> dict[str, Any]:
    """Medians of both ways, and of the cost within each pair."""
    costs = [1 - whole.tokens_per_s / bare.tokens_per_s for whole, bare in pairs]
    ways = {"whole": [whole for whole, _ in pairs], "bare": [bare for _, bare in pairs]}
    return {
        "cost": round(statistics.median(costs), 4),
        "cost_interval": interval(costs),
        "cost_of_each_pair": [round(cost, 4) for cost in costs],
        **{
            name: {
                "tokens_per_s": round(statistics.median(turn.tokens_per_s for turn in turns), 1),
                "step_ms": round(statistics.median(turn.step_ms for turn in turns), 3),
                "cores": {
                    kind: round(statistics.median(turn.cpu_s[kind] for turn in turns), 4) for kind in turns[0].cpu_s
                },
            }
            for name, turns in ways.items()
        },
    }


def main(argv: list[str]) -> int:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="tools/bench steady", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="PATH")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=40, help="turns of each way")
    parser.add_argument("--turn", type=float, default=4.0, help="seconds measured in one turn")
    options = parser.parse_args(argv)
    found = summary(asyncio.run(measure(options)))
    low, high = found["cost_interval"]
    print(f"cost {found['cost']:.1%} (90 % interval {low:.1%} … {high:.1%})")
    print(f"whole {found['whole']}, bare {found['bare']}")
    if options.json:
        made = provenance(f"tools/bench steady --pairs {options.pairs}")
        told = {**made, "ranks": options.ranks, "model": options.model.name, **found}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0
