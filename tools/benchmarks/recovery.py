"""Recovery: what losing a rank costs, beside a full restart of the same cluster in the same run.

Real etcd, control plane, gateway, agents and SGLang ranks under steady, checked load. Half of the faults hit an
instance whose placement keeps coverage intact, half one that has to load experts; after each the rank returns by
itself. At the end of the first one rank is drained and taken back, and every rank is restarted at once, as fixed
membership has to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.benchmarks.provenance import provenance
from tools.benchmarks.recovery_plot import draw
from tools.loadgen import throughput, timing
from tools.mainjob.faults import Moment
from tools.mainjob.instance import SHIPPED_MODEL, Instance, Plan
from tools.mainjob.main import START_S
from tools.mainjob.report import FaultReport, longest_gap_ms
from tools.mainjob.scenarios import SCENARIOS
from tools.mainjob.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tools.loadgen import Answer

_WINDOW_S = 0.5
_PATIENT = {"flap_limit": 1000, "backoff_s": 0.1}
_BEFORE_S = 4.0
"""Undisturbed traffic that a fault's throughput is compared with, and shown in the plot."""
_AFTER_S = (2.0, 5.0)
"""When throughput is to be back: measured from two seconds after a change on."""
KINDS = {"intact": 1.0, "repaired": 0.34}
"""Spare slots as a share of all experts: two copies of everything, or too few for that."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/bench recovery", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="throughput over time, as PNG")
    parser.add_argument("--faults", type=int, default=5, help="of each kind: ten in all")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="PATH")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--coverage", choices=KINDS, help="only these faults; --json keeps what FILE has of the others")
    return parser


@dataclass(frozen=True)
class Loss:
    """One fault and what followed: the report, when it happened, and when the rank served again."""

    report: FaultReport
    at_ns: int
    back_ns: int


async def losses(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Faults on one instance with that much redundancy; with coverage intact a drain and a full restart as well."""
    plan = Plan(ranks=options.ranks, model=options.model, spare=KINDS[kind], policy=dict(_PATIENT))
    async with Instance(plan) as instance:
        await instance.wait_members(set(range(plan.ranks)), within_s=START_S)
        await instance.gateways_ready(within_s=60.0)
        scene = Scene(instance, seed=1, concurrency=options.concurrency, answer_tokens=(64, 192))
        await scene.begin()
        await scene.quiet(_BEFORE_S)
        steady = timing(scene.load.answers)
        found = [await _lose(scene, index % plan.ranks) for index in range(options.faults)]
        planned, full = None, None
        if kind == "intact":
            await SCENARIOS["drain"].run(scene)
            planned = scene.reports[-1]
            full = await _full_restart(scene)
        answers = await scene.finish()
        verdict = await scene.judge()
    return {
        "coverage": sorted({loss.report.coverage for loss in found}),
        "faults": [loss.report.as_json() | shares(answers, loss, ranks=plan.ranks) for loss in found],
        "medians": medians([loss.report.as_json() | shares(answers, loss, ranks=plan.ranks) for loss in found]),
        "planned_drain": planned.as_json() if planned else None,
        "steady_tokens_per_s": round(steady.tokens_per_s, 1),
        "median_step_ms": round(steady.median_step, 3),
        "answers": verdict.answers,
        "failed": verdict.failed + verdict.short if not full else None,
        "tokens": verdict.tokens,
        "tokens_wrong": verdict.wrong,
        "full_restart": full,
        **curve(answers, found[0]),
    }


async def _lose(scene: Scene, rank: int) -> Loss:
    """Kill one rank, and wait until it is back and traffic has run undisturbed."""
    began = Moment.now()
    report = await scene.kill_and_return("SIGKILL", rank, scene.faults.kill_rank)
    await scene.quiet(_AFTER_S[1])
    return Loss(report, began.monotonic_ns, began.monotonic_ns + int((report.rejoin_ms or 0.0) * 1e6))


def shares(answers: Sequence[Answer], loss: Loss, *, ranks: int) -> dict[str, float]:
    """Throughput from two seconds after the loss, of the survivors' share of what was before; and after the return."""

    def rate(since_s: float, until_s: float, at_ns: int) -> float:
        since, until = at_ns + int(since_s * 1e9), at_ns + int(until_s * 1e9)
        return sum(since <= moment < until for answer in answers for moment in answer.arrived_ns) / (until_s - since_s)

    before = rate(-_BEFORE_S, 0.0, loss.at_ns)
    if not before:
        return {}
    return {
        "surviving_share": round(rate(*_AFTER_S, loss.at_ns) / (before * (ranks - 1) / ranks), 3),
        "returned_share": round(rate(*_AFTER_S, loss.back_ns) / before, 3),
    }


def medians(faults: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median of every figure over the faults that have it."""
    names = ("detected_ms", "committed_ms", "pause_ms", "resume_ms", "rejoin_ms", "rejoin_pause_ms")
    found: dict[str, float] = {}
    for name in (*names, "surviving_share", "returned_share"):
        values = [value for fault in faults if (value := fault.get(name)) is not None]
        if values:
            found[name] = round(statistics.median(values), 3)
    return found


def curve(answers: Sequence[Answer], loss: Loss) -> dict[str, Any]:
    """Throughput over time through one loss and return."""
    since = loss.at_ns - int(_BEFORE_S * 1e9)
    until = loss.back_ns + int(_AFTER_S[1] * 1e9)
    return {
        "curve": throughput(answers, window_s=_WINDOW_S, since_ns=since, until_ns=until),
        "curve_lost_s": _BEFORE_S,
        "curve_returned_s": round((loss.back_ns - since) / 1e9, 2),
    }


async def _full_restart(scene: Scene) -> dict[str, float]:
    """End every rank at once and start all again, as fixed membership has to: the clients' longest wait."""
    instance = scene.instance
    began_ns = time.monotonic_ns()
    for rank in sorted(scene.ranks):
        scene.faults.kill_agent(rank)
    for rank in sorted(scene.ranks):
        scene.faults.restart_agent(rank)
    await instance.wait_members(scene.ranks, within_s=START_S)
    await _until_token_after(scene, time.monotonic_ns())
    now_ns = time.monotonic_ns()
    gap_ms = longest_gap_ms(scene.load.answers, since_ns=began_ns, until_ns=now_ns)
    first_new = min(
        (moment for answer in scene.load.answers for moment in answer.arrived_ns if moment > began_ns + 1_000_000_000),
        default=now_ns,
    )
    return {"unavailable_s": round((first_new - began_ns) / 1e9, 2), "longest_gap_ms": round(gap_ms, 1)}


async def _until_token_after(scene: Scene, moment_ns: int) -> None:
    async with asyncio.timeout(120.0):
        while not any(a.arrived_ns and a.arrived_ns[-1] > moment_ns for a in scene.load.answers[-64:]):
            await asyncio.sleep(0.02)


async def measure(options: argparse.Namespace, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The faults asked for, on this machine, now; the others as ``earlier`` has them."""
    found = {kind: earlier.get(kind) for kind in KINDS}
    for kind in [options.coverage] if options.coverage else KINDS:
        found[kind] = run = await losses(options, kind)
        print(f"{kind:9} {run['medians']}  wrong {run['tokens_wrong']} of {run['tokens']}")
    return {
        **provenance(f"tools/bench recovery --faults {options.faults}"),
        "ranks": options.ranks,
        "model": str(options.model.name),
        **found,
        "restart_over_pause": ratio(found["intact"]),
    }


def ratio(intact: Mapping[str, Any] | None) -> float | None:
    """How many times as long a full restart kept everybody waiting as a loss did."""
    if not intact or not intact["full_restart"] or not intact["medians"].get("pause_ms"):
        return None
    return round(float(intact["full_restart"]["unavailable_s"]) * 1000 / float(intact["medians"]["pause_ms"]), 1)


def main(argv: list[str]) -> int:
    """Run; 0 when no request failed and no token was wrong."""
    options = arguments().parse_args(argv)
    keeps = options.coverage and options.json and options.json.exists()
    result = asyncio.run(measure(options, json.loads(options.json.read_text()) if keeps else {}))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        draw(result, options.plot)
    runs = [result[kind] for kind in KINDS if result[kind]]
    print(f"full restart {[run['full_restart'] for run in runs]}; ÷ pause: {result['restart_over_pause']}")
    return 0 if not sum(run["tokens_wrong"] + (run["failed"] or 0) for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
