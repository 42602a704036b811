"""``tools/run``: serve, lose a rank, recover, take it back, and give the verdict."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.etcd import UnavailableError
from tools.loadgen import Outcome, timing
from tools.mainjob import collector
from tools.mainjob.instance import SHIPPED_MODEL, Instance, InstanceError, Plan
from tools.mainjob.processes import ProcessEndedError
from tools.mainjob.report import longest_gaps
from tools.mainjob.scenarios import SCENARIOS
from tools.mainjob.scene import Scene
from tools.mainjob.screen import Screen
from tools.mainjob.traces import TraceReceiver

if TYPE_CHECKING:
    from tools.loadgen import Verdict

START_S = 600.0
"""Longest wait for all ranks: each starts a whole SGLang server, one after the other on a small machine."""
TRACE_S = 15.0
"""For the spans of a recovery to arrive: exporters send every few seconds."""
_REFRESH_S = 0.25


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/run", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end with the verdict instead of serving until Ctrl-C")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--chaos", choices=sorted(SCENARIOS), default="kill-one", help="what goes wrong")
    parser.add_argument("--ranks", type=int, default=4, metavar="N")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="PATH", help="a checkpoint's folder")
    parser.add_argument("--spare", type=float, default=0.5, help="expert slots beyond one copy each, as a share")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and of the choice of ranks")
    parser.add_argument("--concurrency", type=int, default=8, help="clients")
    parser.add_argument("--keep", action="store_true", help="leave configuration and logs behind")
    return parser


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a clear message when an option cannot be used."""
    if not 2 <= options.ranks <= 128:
        parser.error(f"--ranks {options.ranks}: 2 … 128; a lone rank has nobody to take over for it")
    if not (options.model / "config.json").is_file():
        parser.error(f"--model {options.model}: no config.json there; name a checkpoint's folder")
    if options.concurrency < 1:
        parser.error(f"--concurrency {options.concurrency}: at least 1")
    if options.spare < 0:
        parser.error(f"--spare {options.spare}: at least 0")


async def serve(options: argparse.Namespace) -> int:
    """Run the whole job; 0 when nothing failed and no token was wrong."""
    scenario = SCENARIOS[options.chaos]
    plan = Plan(
        ranks=options.ranks,
        model=options.model,
        spare=options.spare,
        etcd=scenario.needs.etcd,
        gateways=2 if scenario.two_gateways else 1,
        transfer_s=scenario.needs.transfer_s,
    )
    with Screen(options.model) as screen:
        async with (
            TraceReceiver() as traces,
            Instance(plan, keep=options.keep, traces=traces.url) as instance,
        ):
            watching = asyncio.create_task(_watch(instance, screen))
            try:
                return await _job(options, instance, screen, traces)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                screen.tell("ending everything that was started")


async def _job(options: argparse.Namespace, instance: Instance, screen: Screen, traces: TraceReceiver) -> int:
    plan = instance.plan
    screen.tell(f"starting etcd, {plan.controlplanes} control planes, a gateway and {plan.ranks} SGLang ranks")
    await instance.wait_members(set(range(plan.ranks)), within_s=START_S)
    await instance.gateways_ready(within_s=60.0)
    screen.link("gateway", instance.gateway_urls[0])
    screen.link("admin and dashboard", instance.admin_urls[0])
    screen.tell(f"all {plan.ranks} ranks serve; gateway {instance.gateway_urls[0]}, admin {instance.admin_urls[0]}")
    scene = Scene(
        instance,
        seed=options.seed,
        concurrency=options.concurrency,
        tell=screen.tell,
        on_token=screen.saw,
        gateways=plan.gateways,
    )
    await scene.begin()
    await SCENARIOS[options.chaos].run(scene)
    await scene.finish()
    for report in scene.reports:
        resumed = (
            "none resumed" if report.resume_ms is None else f"of the lost rank's clients {report.resume_ms:.0f} ms"
        )
        screen.tell(f"{report.name}: longest wait between two tokens {report.pause_ms:.0f} ms, {resumed}")
    screen.tell("checking every token against transformers on the same weights")
    verdict = await scene.judge()
    result = outcome(options, scene, verdict)
    for fault in result["faults"]:
        story = await traces.told(fault["trace_id"], within_s=TRACE_S) if fault["trace_id"] else []
        fault["spans"] = [asdict(span) for span in story]
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    screen.tell(summary(result))
    for report in scene.reports:
        if report.trace_id:
            screen.tell(f"trace of the recovery: {traces.page(report.trace_id)}")
    if not options.once:
        await _serve_on(screen, instance)
    return 0 if verdict.good else 1


def outcome(options: argparse.Namespace, scene: Scene, verdict: Verdict) -> dict[str, Any]:
    """Everything that was measured, as plain values."""
    answers = scene.load.answers
    return {
        "scenario": options.chaos,
        "seed": options.seed,
        "model": str(options.model),
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
        "collector": collector.name(),
        "ranks": scene.instance.plan.ranks,
        "prompts": len(answers),
        "tokens": verdict.tokens,
        "tokens_wrong": verdict.wrong,
        "first_wrong": verdict.first_wrong,
        "worst_logit_gap": verdict.worst_gap,
        "requests": {
            "completed": sum(answer.outcome is Outcome.COMPLETE for answer in answers),
            "failed": verdict.failed + verdict.short,
            "resumed": sum(bool(answer.resumed) for answer in answers),
            "errors": [answer.error for answer in answers if answer.error][:10],
        },
        "timing": {key: round(value, 3) for key, value in asdict(timing(answers)).items()},
        "longest_gaps": longest_gaps(answers),
        "faults": [report.as_json() for report in scene.reports],
        "verdict": "pass" if verdict.good else "fail",
    }


def summary(result: dict[str, Any]) -> str:
    """The verdict in one line."""
    traces = ", ".join(fault["trace_id"] for fault in result["faults"] if fault["trace_id"])
    return (
        f"{result['verdict']}: {result['prompts']} answers, {result['requests']['failed']} failed, "
        f"{result['requests']['resumed']} resumed; {result['tokens']} tokens, {result['tokens_wrong']} wrong"
        + (f"; trace {traces}" if traces else "")
    )


async def _watch(instance: Instance, screen: Screen) -> None:
    while True:
        with contextlib.suppress(UnavailableError):
            screen.show(await instance.epoch(), await instance.registrations(), set(range(instance.plan.ranks)))
        await asyncio.sleep(_REFRESH_S)


async def _serve_on(screen: Screen, instance: Instance) -> None:
    screen.tell(f"serving until Ctrl-C; operator token: {instance.token}")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    await stopped.wait()


def main(argv: list[str] | None = None) -> int:
    """Run; 0 for a good verdict, 1 for a bad one, 2 for bad options, 130 for Ctrl-C before the verdict."""
    parser = arguments()
    options = parser.parse_args(argv)
    check(parser, options)
    try:
        return asyncio.run(serve(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except (InstanceError, ProcessEndedError, TimeoutError) as error:
        print(f"tools/run: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
