"""``tools/bench gpu``: what elasticity costs on one device, and how quickly faults show. N virtual ranks on one device.

Honest here: elastic ÷ fixed of the same source in the same run, the share of the same run's copy bandwidth, what a swap
costs, how exact deadlines are, how soon the host sees a fault. Not measured here: any link between devices.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("sweep", "swaps", "deadlines", "fault_word", "link_repair")


def main(argv: list[str]) -> int:
    """Measure the parts asked for; 0, or 69 where there is no device."""
    parser = argparse.ArgumentParser(prog="tools/bench gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--seconds", type=float, default=330.0, help="time for the sweep; the rest takes about a minute"
    )
    parser.add_argument("--repeats", type=int, default=30, help="interleaved repeats of each build in the sweep")
    parser.add_argument(
        "--plain-streams", action="store_true", help="no green contexts: one stream a rank on the whole device"
    )
    options = parser.parse_args(argv)
    # Before the first call of CUDA: streams on one hardware queue wait for each other, which ranks must not.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

    from native import cuda  # noqa: PLC0415  # heavy, and absent where no CUDA compiler was

    if not cuda.available():
        sys.stderr.write("tools/bench gpu: no CUDA device here, or native._cuda is not built; nothing was measured\n")
        return 69
    report = measure(options)
    results = [report[name] for name in options.parts] + report.get("sweep", [])
    return 1 if any("failed" in result for result in results) else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the parts; a part that fails is reported as such and the others still run.

    The file has whatever is known as soon as it is known: a lease may end in the middle.
    """
    from tools.benchmarks.device import change, machine, sweep  # noqa: PLC0415  # torch with CUDA

    ceiling = machine.copy_bandwidth()
    report: dict[str, Any] = {"machine": machine.describe(), "copy_bandwidth_gb_s": ceiling / 1e9}

    def save() -> None:
        if options.json is not None:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def rows(so_far: list[dict[str, Any]]) -> None:
        report["sweep"] = so_far
        save()

    save()
    print(f"{report['machine']['device']}: device-to-device copy {ceiling / 1e9:.0f} GB/s", flush=True)
    parts: dict[str, Callable[[], Any]] = {
        "swaps": change.swaps,
        "deadlines": change.deadlines,
        "fault_word": change.fault_word,
        "link_repair": change.link_repair,
        "sweep": lambda: sweep.run(
            seconds=options.seconds,
            repeats=options.repeats,
            green=not options.plain_streams,
            ceiling=ceiling,
            on_rows=rows,
        ),
    }
    for name, part in parts.items():
        if name not in options.parts:
            continue
        began = time.monotonic()
        try:
            report[name] = part()
        except Exception as error:  # noqa: BLE001  # one part's failure is a result; the lease is too dear to stop at it
            report[name] = {"failed": f"{type(error).__name__}: {error}", "before": report.get(name)}
        save()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        if name != "sweep" or isinstance(report[name], dict):
            print(json.dumps(report[name], indent=1), flush=True)
    return report
