"""``tools/bench planner [--json FILE] [--plots FOLDER]``: placement, repair and movement beside DeepSeek's EPLB.

The baseline is the algorithm inside the installed sglang, called in the same process on the same loads; bounds are
solved by HiGHS. The verdict lists every target with the figure measured here; the exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.benchmarks.placement import plots, suite, verdict
from tools.benchmarks.placement.timing import times


def main(argv: list[str]) -> int:
    """Measure, print, judge; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="tools/bench planner", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write planner_*.png")
    parser.add_argument("--seed", type=int, default=0, help="of the loads")
    parser.add_argument("--quick", action="store_true", help="two shapes, two loads, a short day")
    parser.add_argument("--retime", type=Path, metavar="FILE", help="measure only the times, and put them into FILE")
    options = parser.parse_args(argv)
    command = ["tools/bench planner", *(Path(word).name for word in argv)]
    if options.retime:
        result = json.loads(options.retime.read_text(encoding="utf-8"))
        names = list(dict.fromkeys(row["load"] for row in result["placement"]))
        result["time"] = times(names, seed=options.seed, quick=options.quick)
        result["time_run"] = about(command)
    else:
        result = {"run": about(command), **suite.measure(seed=options.seed, quick=options.quick)}
    return report(result, target=options.retime or options.json, folder=options.plots)


def report(result: dict[str, Any], *, target: Path | None, folder: Path | None) -> int:
    """Judge, print and write; 1 if a target is missed."""
    result["verdict"] = [line.as_dict() for line in verdict.judge(result)]
    for line in result["verdict"]:
        print(f"{'ok  ' if line['met'] else 'MISS'} {line['target']}: {line['measured']}")
        for case in (*line["missed"], *line["infeasible"]):
            print(f"       {case}")
    if target:
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if folder:
        plots.draw(result, folder)
    return 0 if all(line["met"] for line in result["verdict"]) else 1


def about(command: list[str]) -> dict[str, Any]:
    """When, where and with what."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(command),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "scipy", "torch", "sglang")},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
