"""``tools/chaos``: every scenario with several seeds, on one instance while it stays sound, each with its verdict."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.mainjob.history import violations
from tools.mainjob.instance import SHIPPED_MODEL, Instance, InstanceError, Plan
from tools.mainjob.main import START_S
from tools.mainjob.processes import ProcessEndedError
from tools.mainjob.scenarios import SCENARIOS
from tools.mainjob.scene import Scene

if TYPE_CHECKING:
    from tools.mainjob.scenarios import Scenario


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/chaos", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"all of: {', '.join(SCENARIOS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each scenario")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="PATH")
    parser.add_argument("--spare", type=float, default=0.5, help="expert slots beyond one copy each, as a share")
    return parser


def groups(options: argparse.Namespace) -> list[tuple[Plan, list[str]]]:
    """Scenarios that can share an instance."""
    found: list[tuple[Plan, list[str]]] = []
    for name in options.scenarios or SCENARIOS:
        plan = plan_for(options, SCENARIOS[name])
        for other, names in found:
            if other == plan:
                names.append(name)
                break
        else:
            found.append((plan, [name]))
    return found


def plan_for(options: argparse.Namespace, scenario: Scenario) -> Plan:
    """The instance that a scenario needs."""
    patient = {"flap_limit": 1000, "backoff_s": 0.1}  # one instance goes through many losses: no rank is to blame
    return Plan(
        ranks=options.ranks,
        model=options.model,
        spare=options.spare,
        etcd=scenario.etcd,
        gateways=scenario.gateways,
        policy=patient | scenario.policy,
    )


async def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every scenario and seed; what came out of each."""
    results: list[dict[str, Any]] = []
    for plan, names in groups(options):
        todo = [
            (name, seed) for name in names for seed in range(options.first_seed, options.first_seed + options.seeds)
        ]
        while todo:
            async with Instance(plan) as instance:
                await instance.wait_members(set(range(plan.ranks)), within_s=START_S)
                await instance.gateways_ready(within_s=60.0)
                while todo:
                    name, seed = todo.pop(0)
                    results.append(await run_one(instance, name, seed))
                    say(results[-1])
                    if results[-1]["verdict"] != "pass":
                        break  # a fresh instance for the rest
    return results


async def run_one(instance: Instance, name: str, seed: int) -> dict[str, Any]:
    """One scenario under checked load."""
    began = time.monotonic()
    scene = Scene(instance, seed=seed, clients_retry=SCENARIOS[name].gateways > 1)
    problem = ""
    try:
        await scene.begin()
        await SCENARIOS[name].run(scene)
    except (InstanceError, ProcessEndedError, TimeoutError, AssertionError) as error:
        problem = f"{type(error).__name__}: {error}"
    try:
        await scene.finish()
    except TimeoutError:
        problem = problem or "answers under way did not end within 300 s"
    verdict = await scene.judge()
    broken = await violations(instance)
    return {
        "scenario": name,
        "seed": seed,
        "verdict": "pass" if verdict.good and not problem and not broken else "fail",
        "problem": problem,
        "invariants_broken": broken,
        "answers": verdict.answers,
        "failed": verdict.failed + verdict.short,
        "tokens": verdict.tokens,
        "tokens_wrong": verdict.wrong,
        "resumed": sum(bool(answer.resumed) for answer in scene.load.answers),
        "errors": [answer.error for answer in scene.load.answers if answer.error][:5],
        "faults": [report.as_json() for report in scene.reports],
        "seconds": round(time.monotonic() - began, 1),
    }


def say(result: dict[str, Any]) -> None:
    """One line per run."""
    pauses = ", ".join(f"pause {fault['pause_ms']:.0f} ms" for fault in result["faults"])
    print(
        f"{result['verdict']:4}  {result['scenario']:28} seed {result['seed']:<4} {result['answers']:4} answers, "
        f"{result['failed']} failed, {result['tokens_wrong']} wrong  {pauses}  {result['seconds']} s  "
        f"{result['problem']}" + "".join(f"\n      broken: {line}" for line in result["invariants_broken"]),
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Run; 0 when every run passed."""
    parser = arguments()
    options = parser.parse_args(argv)
    unknown = sorted(set(options.scenarios) - set(SCENARIOS))
    if unknown:
        parser.error(f"unknown scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    results = asyncio.run(run_all(options))
    passed = sum(result["verdict"] == "pass" for result in results)
    if options.json:
        options.json.write_text(json.dumps({"runs": results, "passed": passed, "of": len(results)}, indent=2) + "\n")
    print(f"{passed} of {len(results)} runs passed")
    return 0 if results and passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
