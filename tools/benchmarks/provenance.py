"""Where and when a figure was made: every result that is kept carries it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

_BEGAN = psutil.cpu_times()


def provenance(command: str) -> dict[str, Any]:
    """Date, machine, versions and the command that repeats the run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": {"cores": os.cpu_count(), "cpu": _cpu(), "kernel": platform.release()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("eep", "sglang", "torch")},
        },
        "load_average": round(os.getloadavg()[0], 2),
        "stolen_share": round(_stolen_share(), 4),
    }


def _stolen_share() -> float:
    """What a virtual machine's host took of the cores since this process began: pauses that no process here made."""
    now = psutil.cpu_times()
    return float((now.steal - _BEGAN.steal) / max(sum(now) - sum(_BEGAN), 1.0))


def _cpu() -> str:
    """The processor's own name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
