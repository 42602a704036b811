"""``tools/chaos``: every scenario with several seeds, each with its verdict.

Scenarios with equal needs share one running cluster. After each of them the cluster has to come back to its normal
state within a deadline; if it does not, or if anything else was wrong, the run failed and the next one begins on a
fresh cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.etcd import EtcdError
from tools.benchmarks.provenance import provenance
from tools.etcd.local import EtcdStartError
from tools.mainjob.history import violations
from tools.mainjob.instance import (
    FIRST_LOSS_POLICY,
    FIRST_LOSS_WORKER,
    SHIPPED_MODEL,
    Instance,
    InstanceError,
    Plan,
)
from tools.mainjob.main import START_S
from tools.mainjob.normal import wait_normal
from tools.mainjob.processes import ProcessEndedError
from tools.mainjob.report import longest_gap_ms
from tools.mainjob.scenarios import SCENARIOS, Needs, Scenario, grouped
from tools.mainjob.scene import REJOIN_S, Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

GATEWAYS = 2
"""The second one is idle but where a scenario kills the other."""
_TROUBLE = (InstanceError, ProcessEndedError, EtcdError, EtcdStartError, TimeoutError, AssertionError)
"""What a run may end with that is the cluster's doing and not this program's."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tools/chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios:\n" + "\n".join(f"  {one.name:28} {one.story}" for one in SCENARIOS.values()),
    )
    parser.add_argument("scenarios", nargs="*", metavar="NAME", help="scenarios, all when none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there, after each run")
    parser.add_argument("--merge", action="store_true", help="keep the runs of FILE that are not repeated now")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each scenario")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="seeds are S … S + N − 1")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="PATH")
    parser.add_argument("--spare", type=float, default=1.0, help="expert slots beyond one copy each, as a share")
    parser.add_argument("--keep", action="store_true", help="leave configuration and logs of each cluster behind")
    return parser


def plan_for(options: argparse.Namespace, needs: Needs) -> Plan:
    """The instance that scenarios share."""
    return Plan(
        ranks=options.ranks,
        model=options.model,
        spare=options.spare,
        etcd=needs.etcd,
        gateways=GATEWAYS,
        transfer_s=needs.transfer_s,
        # One instance goes through many losses and no rank is to blame. Experts may lie so that a loss costs loads.
        policy={"survivability": "none", **FIRST_LOSS_POLICY},
        worker=dict(FIRST_LOSS_WORKER),
    )


async def run_all(options: argparse.Namespace, results: Results) -> None:
    """Every scenario and seed."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for needs, scenarios in grouped(options.scenarios or SCENARIOS).items():
        todo = deque((scenario, seed) for scenario in scenarios for seed in seeds)
        while todo:
            await run_while_sound(plan_for(options, needs), todo, results, keep=options.keep)


async def run_while_sound(
    plan: Plan, todo: deque[tuple[Scenario, int]], results: Results, *, keep: bool = False
) -> None:
    """Start a cluster, and take runs from ``todo`` until one fails."""
    began, run = time.monotonic(), todo[0]
    try:
        async with Instance(plan, keep=keep) as instance:
            await wait_normal(instance, within_s=START_S)
            took_s = time.monotonic() - began
            print(f"cluster of {plan.ranks} ranks in {took_s:.0f} s; logs: {instance.household.folder}", flush=True)
            while todo:
                run = todo[0]
                result = await run_one(instance, *run)
                todo.popleft()
                results.add(result)
                if result["verdict"] != "pass":
                    return
    except _TROUBLE as error:
        if todo and todo[0] is run:
            todo.popleft()
        scenario, seed = run
        problem = f"the cluster itself: {type(error).__name__}: {error}"
        results.add({"scenario": scenario.name, "seed": seed, "verdict": "fail", "problem": problem})


async def run_one(instance: Instance, scenario: Scenario, seed: int) -> dict[str, Any]:
    """One scenario under checked load, and back to normal."""
    began, began_ns = time.monotonic(), time.monotonic_ns()
    audited = instance.audit.stat().st_size if instance.audit.exists() else 0
    scene = Scene(
        instance,
        seed=seed,
        title=scenario.name,
        gateways=GATEWAYS if scenario.two_gateways else 1,
        starting_clients=0,
    )
    problems = []
    try:
        await scene.begin()
        began_ns = time.monotonic_ns()
        await scenario.run(scene)
        await wait_normal(instance, within_s=REJOIN_S)
    except _TROUBLE as error:
        problems.append(f"{type(error).__name__}: {error}")
    try:
        await scene.finish()
    except _TROUBLE as error:
        problems.append(f"answers under way did not end: {type(error).__name__}: {error}")
    longest_ms = longest_gap_ms(scene.load.answers, since_ns=began_ns, until_ns=time.monotonic_ns())
    if longest_ms > scenario.longest_wait_s * 1e3:
        problems.append(
            f"a client waited {longest_ms:.0f} ms for its next token; {scenario.longest_wait_s:g} s allowed"
        )
    verdict = await scene.judge()
    broken = await violations(instance, audited=audited, gateway_killed=scenario.two_gateways)
    return {
        "scenario": scenario.name,
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": "pass" if verdict.good and not problems and not broken else "fail",
        "problem": "; ".join(problems),
        "invariants_broken": broken,
        "answers": verdict.answers,
        "failed": verdict.failed + verdict.short,
        "tokens": verdict.tokens,
        "tokens_wrong": verdict.wrong,
        "first_wrong": verdict.first_wrong,
        "resumed": sum(bool(answer.resumed) for answer in scene.load.answers),
        "errors": [answer.error for answer in scene.load.answers if answer.error][:5],
        "longest_wait_ms": round(longest_ms, 1),
        "longest_wait_allowed_ms": scenario.longest_wait_s * 1e3,
        "faults": [report.as_json() for report in scene.reports],
        "seconds": round(time.monotonic() - began, 1),
    }


class Results:
    """What came out so far; on disk after each run, so that an interrupted suite leaves what it has."""

    def __init__(self, command: str, path: Path | None, *, earlier: Sequence[dict[str, Any]] = ()) -> None:
        """Write to ``path``; runs of ``earlier`` stay until the same scenario and seed is run again."""
        self.runs: list[dict[str, Any]] = []
        self._command = command
        self._path = path
        self._earlier = list(earlier)

    def add(self, run: dict[str, Any]) -> None:
        """One more run."""
        self.runs.append(run)
        print(line(run), flush=True)
        if self._path is not None:
            known = {(one["scenario"], one["seed"]) for one in self.runs}
            runs = [*(one for one in self._earlier if (one["scenario"], one["seed"]) not in known), *self.runs]
            runs.sort(key=lambda one: (list(SCENARIOS).index(one["scenario"]), one["seed"]))
            whole = {**provenance(self._command), "table": table(runs), "runs": runs}
            self._path.write_text(json.dumps(whole, indent=2) + "\n")

    @property
    def passed(self) -> int:
        """How many runs passed."""
        return sum(run["verdict"] == "pass" for run in self.runs)


def table(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each scenario."""
    found = []
    for name in dict.fromkeys(run["scenario"] for run in runs):
        mine = [run for run in runs if run["scenario"] == name]
        found.append(
            {
                "scenario": name,
                "seeds": [run["seed"] for run in mine],
                "passed": sum(run["verdict"] == "pass" for run in mine),
                **{
                    key: sum(run.get(key, 0) for run in mine) for key in ("answers", "failed", "tokens", "tokens_wrong")
                },
                "resumed": sum(run.get("resumed", 0) for run in mine),
                "longest_wait_ms": max(run.get("longest_wait_ms", 0.0) for run in mine),
            }
        )
    return found


def line(run: dict[str, Any]) -> str:
    """One run for people."""
    said = f"{run['verdict']:4}  {run['scenario']:28} seed {run['seed']:<4}"
    if "answers" in run:
        pauses = ", ".join(f"{fault['pause_ms']:.0f}" for fault in run["faults"])
        said += (
            f" {run['answers']:4} answers, {run['failed']} failed, {run['resumed']} resumed; {run['tokens']} tokens, "
            f"{run['tokens_wrong']} wrong; pause [{pauses}] ms, longest wait {run['longest_wait_ms']:.0f} ms; "
            f"{run['seconds']} s"
        )
    broken = "".join(f"\n      broken: {what}" for what in run.get("invariants_broken", []))
    return said + (f"\n      problem: {run['problem']}" if run["problem"] else "") + broken


def main(argv: list[str] | None = None) -> int:
    """Run; 0 when every run passed."""
    parser = arguments()
    options = parser.parse_args(argv)
    unknown = sorted(set(options.scenarios) - set(SCENARIOS))
    if unknown:
        parser.error(f"unknown scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if options.ranks < 3:
        parser.error(f"--ranks {options.ranks}: at least 3: scenarios kill two")
    earlier = []
    if options.merge and options.json is not None and options.json.exists():
        earlier = json.loads(options.json.read_text())["runs"]
    command = " ".join(["tools/chaos", f"--seeds {options.seeds}", *options.scenarios])
    results = Results(command, options.json, earlier=earlier)
    asyncio.run(run_all(options, results))
    print(f"{results.passed} of {len(results.runs)} runs passed")
    return 0 if results.runs and results.passed == len(results.runs) else 1


if __name__ == "__main__":
    sys.exit(main())
