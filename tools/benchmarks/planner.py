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


def main(argv: list[str]) -> int:
    """Measure, print, judge; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="tools/bench planner", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write planner_*.png")
    parser.add_argument("--seed", type=int, default=0, help="of the loads")
    parser.add_argument("--quick", action="store_true", help="two shapes, two loads, a short day")
    options = parser.parse_args(argv)
    result: dict[str, Any] = {"run": about(["tools/bench planner", *(Path(word).name for word in argv)])}
    result |= suite.measure(seed=options.seed, quick=options.quick)
    result["verdict"] = [line.as_dict() for line in verdict.judge(result)]
    for line in result["verdict"]:
        print(f"{'ok  ' if line['met'] else 'MISS'} {line['target']}: {line['measured']}")
        for case in (*line["missed"], *line["infeasible"]):
            print(f"       {case}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.plots:
        plots.draw(result, options.plots)
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
