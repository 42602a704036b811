"""Recovery: what losing a rank costs, beside a full restart of the same cluster in the same run.

Real etcd, control plane, gateway, agents and SGLang ranks under steady, checked load. Medians over the faults of one
instance whose placement keeps coverage intact, and of one that has to load experts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.benchmarks.provenance import provenance
from tools.loadgen import throughput, timing
from tools.mainjob.instance import SHIPPED_MODEL, Instance, Plan
from tools.mainjob.main import START_S
from tools.mainjob.report import FaultReport, longest_gap_ms
from tools.mainjob.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

_WINDOW_S = 0.5
_PATIENT = {"flap_limit": 1000, "backoff_s": 0.1}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/bench recovery", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="throughput over time, as PNG")
    parser.add_argument("--faults", type=int, default=10, help="of each kind")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="PATH")
    parser.add_argument("--concurrency", type=int, default=8)
    return parser


async def losses(options: argparse.Namespace, *, spare: float, restart: bool) -> dict[str, Any]:
    """Faults on one instance with that much redundancy; optionally a full restart at the end."""
    plan = Plan(ranks=options.ranks, model=options.model, spare=spare, policy=dict(_PATIENT))
    async with Instance(plan) as instance:
        await instance.wait_members(set(range(plan.ranks)), within_s=START_S)
        await instance.gateways_ready(within_s=60.0)
        scene = Scene(instance, seed=1, concurrency=options.concurrency, answer_tokens=(64, 192))
        await scene.begin()
        await scene.quiet(5.0)
        steady = timing(scene.load.answers)
        began_ns = time.monotonic_ns()
        curve_ns = None
        for index in range(options.faults):
            first_ns = time.monotonic_ns()
            await scene.kill_and_return("SIGKILL", index % plan.ranks, scene.faults.kill_rank)
            curve_ns = curve_ns or (first_ns - 4_000_000_000, time.monotonic_ns() + 2_000_000_000)
        await scene.quiet(3.0)
        until_ns = time.monotonic_ns()
        full = await _full_restart(scene) if restart else None
        answers = await scene.finish()
        verdict = await scene.judge()
    since_ns = min(curve_ns[0], began_ns) if curve_ns else began_ns
    return {
        "coverage": "intact" if all(report.coverage == "intact" for report in scene.reports) else "repaired",
        "faults": [report.as_json() for report in scene.reports],
        "medians": medians(scene.reports),
        "steady_tokens_per_s": round(steady.tokens_per_s, 1),
        "median_step_ms": round(steady.median_step, 3),
        "answers": verdict.answers,
        "failed": verdict.failed + verdict.short if not restart else None,
        "tokens": verdict.tokens,
        "tokens_wrong": verdict.wrong,
        "full_restart": full,
        "curve": throughput(
            answers, window_s=_WINDOW_S, since_ns=since_ns, until_ns=curve_ns[1] if curve_ns else until_ns
        ),
        "curve_faults_s": [4.0],
    }


def medians(reports: Sequence[FaultReport]) -> dict[str, float]:
    """Median of every figure over the faults that have it."""
    names = ("detected_ms", "committed_ms", "pause_ms", "resume_ms", "rejoin_ms", "rejoin_pause_ms")
    found: dict[str, float] = {}
    for name in names:
        values = [value for report in reports if (value := getattr(report, name)) is not None]
        if values:
            found[name] = round(statistics.median(values), 2)
    return found


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


def plot(result: dict[str, Any], path: Path) -> None:
    """Throughput over time through kill, recovery and rejoin, for both instances."""
    import matplotlib as mpl  # noqa: PLC0415  heavy, and only for this

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(9, 4), dpi=140)
    for name, colour in (("intact", "#1b7f5c"), ("repaired", "#c2571a")):
        run = result.get(name)
        if run:
            axes.step(*zip(*run["curve"], strict=True), where="mid", label=f"coverage {name}", color=colour)
    axes.axvline(4.0, color="#888888", linestyle="--", linewidth=1)
    axes.annotate("SIGKILL", (4.0, 0.02), xycoords=("data", "axes fraction"), color="#666666")
    axes.set_xlabel("seconds")
    axes.set_ylabel("output tokens per second")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{result['ranks']} ranks; one is killed, and returns by itself")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, on this machine, now."""
    intact = await losses(options, spare=1.0, restart=True)
    repaired = await losses(options, spare=0.34, restart=False)
    pause_s = intact["medians"].get("pause_ms", 0.0) / 1000
    restart_s = intact["full_restart"]["unavailable_s"]
    return {
        **provenance(f"tools/bench recovery --faults {options.faults}"),
        "ranks": options.ranks,
        "model": str(options.model.name),
        "intact": intact,
        "repaired": repaired,
        "restart_over_pause": round(restart_s / pause_s, 1) if pause_s else None,
    }


def main(argv: list[str]) -> int:
    """Run; 0 when no request failed and no token was wrong."""
    options = arguments().parse_args(argv)
    result = asyncio.run(measure(options))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        plot(result, options.plot)
    for name in ("intact", "repaired"):
        run = result[name]
        print(f"{name:9} {run['medians']}  wrong {run['tokens_wrong']} of {run['tokens']}")
    print(f"full restart {result['intact']['full_restart']}; ÷ pause: {result['restart_over_pause']}")
    wrong = result["intact"]["tokens_wrong"] + result["repaired"]["tokens_wrong"] + result["repaired"]["failed"]
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
