"""What the figures were measured on, and the ceiling they are compared with."""

from __future__ import annotations

import datetime as dt
import platform
import shutil
import statistics
import subprocess
import sys
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Hardware, driver, versions, date, command."""
    props = torch.cuda.get_device_properties(0)
    return {
        "device": props.name,
        "multiprocessors": props.multi_processor_count,
        "memory_gib": round(props.total_memory / 2**30, 1),
        "l2_mib": round(props.L2_cache_size / 2**20),
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": _ask("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"),
        "nvcc": _ask(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc", "--version").splitlines()[-1:],
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "date": dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.orig_argv),
    }


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known: {error}"


def copy_bandwidth(*, bytes_: int = 4 << 30, repeats: int = 9) -> float:
    """Bytes a second of a device-to-device copy, read plus written: the ceiling of the same run."""
    source = torch.randint(0, 127, (bytes_,), dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    seconds: list[float] = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * bytes_ / statistics.median(seconds[2:])
