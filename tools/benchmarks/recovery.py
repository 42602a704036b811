"""Recovery: what losing a rank costs, beside a full restart of the same cluster in the same run.

Real etcd, control plane, gateway, agents and SGLang ranks under steady, checked load. Every expert has two copies.
Faults alternate: one rank is killed, which leaves coverage intact, and two at once, after which experts have to be
loaded; each time the ranks return by themselves. At the end one rank is drained and taken back, and every rank is
restarted at once, as fixed membership has to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.benchmarks.provenance import provenance
from tools.benchmarks.recovery_plot import draw
from tools.loadgen import throughput, timing
from tools.mainjob.faults import Moment
from tools.mainjob.instance import FIRST_LOSS_POLICY, FIRST_LOSS_WORKER, SHIPPED_MODEL, Instance, Plan
from tools.mainjob.main import START_S
from tools.mainjob.report import FaultReport, longest_gap_ms
from tools.mainjob.scenarios import SCENARIOS
from tools.mainjob.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tools.loadgen import Answer

_WINDOW_S = 0.5
_BEFORE_S = 4.0
"""Undisturbed traffic that a fault's throughput and waits are compared with, and shown in the plot."""
_AFTER_S = (2.0, 5.0)
"""When throughput is to be back: measured from two seconds after a change on."""
_APART_S = 25.0
"""Between two faults at least: a dead engine's memory goes back over ten seconds, and the next fault is not to see it
happen."""
_SPARE = 1.0
"""Spare slots as a share of all experts: two copies of everything."""
KINDS = ("intact", "repaired")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/bench recovery", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="throughput over time, as PNG")
    parser.add_argument("--faults", type=int, default=10, help="in all, alternately of each kind")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="PATH")
    parser.add_argument("--concurrency", type=int, default=8)
    return parser


@dataclass(frozen=True)
class Loss:
    """One fault and what followed.

    Attributes:
        report: its figures.
        lost: how many ranks it hit.
        at_ns: when it happened.
        back_ns: when all ranks served again.
    """

    report: FaultReport
    lost: int
    at_ns: int
    back_ns: int


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All faults, the drain and the restart, on one instance, now."""
    plan = Plan(
        ranks=options.ranks,
        model=options.model,
        spare=_SPARE,
        policy=dict(FIRST_LOSS_POLICY),
        worker=dict(FIRST_LOSS_WORKER),
    )
    async with Instance(plan) as instance:
        await instance.wait_members(set(range(plan.ranks)), within_s=START_S)
        await instance.gateways_ready(within_s=60.0)
        scene = Scene(instance, seed=1, concurrency=options.concurrency, answer_tokens=(64, 192))
        await scene.begin()
        await scene.quiet(_BEFORE_S)
        steady = timing(scene.load.answers)
        found = [await _lose(scene, number) for number in range(options.faults)]
        await SCENARIOS["drain"].run(scene)
        drained = scene.reports[-1]
        undisturbed = len(scene.load.answers)
        full = await _full_restart(scene)
        answers = await scene.finish()
        verdict = await scene.judge()
    # The restart breaks off what runs: only what ended before it may not fail.
    failed = [answer for answer in answers[: undisturbed - options.concurrency] if answer.error]
    kinds = {kind: _kind([loss for loss in found if loss.lost == 1 + at], answers, plan.ranks)
             for at, kind in enumerate(KINDS)}  # fmt: skip
    pause = kinds["intact"]["medians"].get("pause_ms")
    return {
        **provenance(f"tools/bench recovery --faults {options.faults}"),
        "ranks": options.ranks,
        "model": str(options.model.name),
        **kinds,
        "planned_drain": drained.as_json(),
        "full_restart": full,
        "restart_over_pause": round(full["unavailable_s"] * 1000 / pause, 1) if pause else None,
        "steady_tokens_per_s": round(steady.tokens_per_s, 1),
        "median_step_ms": round(steady.median_step, 3),
        "answers": verdict.answers,
        "failed_before_restart": len(failed),
        "tokens": verdict.tokens,
        "tokens_wrong": verdict.wrong,
    }


def _kind(found: Sequence[Loss], answers: Sequence[Answer], ranks: int) -> dict[str, Any]:
    faults = [
        loss.report.as_json() | shares(answers, loss, ranks=ranks) | {"undisturbed_ms": undisturbed(answers, loss)}
        for loss in found
    ]
    return {
        "coverage": sorted({loss.report.coverage for loss in found}),
        "faults": faults,
        "medians": medians(faults),
        **(curve(answers, found[0]) if found else {}),
    }


async def _lose(scene: Scene, number: int) -> Loss:
    """Kill one rank or two, and wait until all are back and traffic has run undisturbed."""
    began = Moment.now()
    if number % 2:
        report, moment = await scene.lose_two("SIGKILL of two")
    else:
        report, moment = await scene.lose("SIGKILL", number // 2 % scene.instance.plan.ranks, scene.faults.kill_rank)
    scene.watch_gaps(report, moment)
    await scene.back(report, moment)
    back_ns = moment.monotonic_ns + int((report.rejoin_ms or 0.0) * 1e6)
    await scene.quiet(max(_AFTER_S[1], _APART_S - (report.rejoin_ms or 0.0) / 1e3))
    return Loss(report, 1 + number % 2, began.monotonic_ns, back_ns)


def shares(answers: Sequence[Answer], loss: Loss, *, ranks: int) -> dict[str, float]:
    """Throughput from two seconds after the loss, of the survivors' share of what was before; and after the return.

    The former ends with the return, if that comes first; without half a second of it there is no such figure.
    """

    def rate(since_s: float, until_s: float, at_ns: int) -> float:
        since, until = at_ns + int(since_s * 1e9), at_ns + int(until_s * 1e9)
        return sum(since <= moment < until for answer in answers for moment in answer.arrived_ns) / (until_s - since_s)

    before = rate(-_BEFORE_S, 0.0, loss.at_ns)
    if not before:
        return {}
    found = {"returned_share": round(rate(*_AFTER_S, loss.back_ns) / before, 3)}
    since, until = _AFTER_S[0], min(_AFTER_S[1], (loss.back_ns - loss.at_ns) / 1e9)
    if until - since >= _WINDOW_S:
        found["surviving_share"] = round(rate(since, until, loss.at_ns) / (before * (ranks - loss.lost) / ranks), 3)
    return found


def undisturbed(answers: Sequence[Answer], loss: Loss) -> float:
    """The longest wait before the loss, ms, in as long a time as ``pause_ms`` is of: prefills, and the machine."""
    since = loss.at_ns - int(_BEFORE_S * 1e9)
    before = (pairwise(moment for moment in answer.arrived_ns if since <= moment < loss.at_ns) for answer in answers)
    return round(max((later - earlier for gaps in before for earlier, later in gaps), default=0) / 1e6, 3)


def medians(faults: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median of every figure over the faults that have it."""
    names = ("detected_ms", "committed_ms", "pause_ms", "resume_ms", "rejoin_ms", "rejoin_pause_ms", "undisturbed_ms")
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


def main(argv: list[str]) -> int:
    """Run; 0 when no request failed before the restart and no token was wrong."""
    options = arguments().parse_args(argv)
    result = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        draw(result, options.plot)
    for kind in KINDS:
        print(f"{kind:9} {result[kind]['medians']}")
    print(f"full restart {result['full_restart']}; ÷ pause: {result['restart_over_pause']}")
    print(f"wrong {result['tokens_wrong']} of {result['tokens']} tokens, failed {result['failed_before_restart']}")
    return 1 if result["tokens_wrong"] or result["failed_before_restart"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
