"""What this machine has, what it lacks, and what each missing thing would enable.

Standard library only: it must run on a machine where nothing is installed yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Attributes:
        found: version or place; empty when it is missing.
        enables: what works with it, or fails without it.
        remedy: the command that brings it.
        required: ``tools/run`` cannot work without it.
    """

    name: str
    found: str
    enables: str
    remedy: str
    required: bool


def version(*command: str, words: int = 4) -> str:
    """First line a program prints about itself, or nothing when it is not there or does not answer in 20 s."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return " ".join(lines[0].split()[:words]) if lines and done.returncode == 0 else ""


def first(*candidates: Callable[[], str]) -> str:
    """The first answer that is not empty."""
    return next((answer for candidate in candidates if (answer := candidate())), "")


def python() -> str:
    """This interpreter, if it is new enough."""
    return sys.version.split()[0] if sys.version_info >= (3, 11) else ""


def venv() -> str:
    """The two modules that make a virtual environment (Debian packages them apart)."""
    return "venv, ensurepip" if all(map(importlib.util.find_spec, ("venv", "ensurepip"))) else ""


def headers() -> str:
    """Where Python.h is."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return str(header.parent) if header.exists() else ""


def memory() -> str:
    """Free memory, if it is enough for four ranks."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return f"{total:.0f} GiB, {free:.0f} GiB free" if total > 8 else ""


def disk() -> str:
    """Free disk where the environment goes, if it is enough."""
    free = shutil.disk_usage(Path.cwd()).free / GIB
    return f"{free:.0f} GiB free" if free > 4 or installed("torch") else ""


def installed(package: str) -> str:
    """Version of a package in the project's environment."""
    python_there = Path(os.environ.get("EEP_VENV", ".venv")) / "bin" / "python"
    if not python_there.exists():
        return ""
    return version(str(python_there), "-c", f"import importlib.metadata as m; print(m.version({package!r}))")


def etcd() -> str:
    """The etcd on PATH, or the one in the environment's wheel."""
    wheel = Path(os.environ.get("EEP_VENV", ".venv")) / "bin" / "etcd"
    return first(
        lambda: version("etcd", "--version"),
        lambda: version(str(wheel), "--version"),
        lambda: "comes with the Python packages" if not installed("eep") else "",
    )


def gpu() -> str:
    """The first GPU's name, from the driver."""
    return version("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", words=8)


def look() -> list[Finding]:
    """Everything that matters, in the order in which a set-up needs it."""
    apt = "sudo apt-get install "
    need, want = True, False
    return [
        Finding("Python ≥ 3.11", python(), "everything", f"{apt}python3", need),
        Finding("venv", venv(), "the project's own environment", f"{apt}python3-venv", need),
        Finding("Python headers", headers(), "building the native extension", f"{apt}python3-dev", need),
        Finding(
            "C++ compiler", version("c++", "--version"), "building the native extension (C++20)", f"{apt}g++", need
        ),
        Finding("memory", memory(), "four ranks of the shipped model need about 6 GiB", "a machine with 8 GiB", need),
        Finding("disk", disk(), "the environment takes about 2 GiB", "free 4 GiB here, or set EEP_VENV", need),
        Finding("packages", installed("eep"), "everything; tools/run installs them", "tools/run", want),
        Finding("SGLang", installed("sglang"), "serving; tools/run installs it", "tools/run", want),
        Finding("etcd", etcd(), "membership", f"{apt}etcd-server", want),
        Finding("GPU", gpu(), "the CUDA backend; without it ranks run on CPU", "a machine with an NVIDIA GPU", want),
        Finding("nvcc", nvcc(), "compiling the CUDA backend and its tests", "install the CUDA toolkit ≥ 12.4", want),
        Finding(
            "clang++", version("clang++", "--version"), "a second compiler for the native tests", f"{apt}clang", want
        ),
        Finding("Java", version("java", "-version"), "checking the TLA+ model", f"{apt}default-jre-headless", want),
        Finding("nft", version("nft", "--version"), "partition tests (as root)", f"{apt}nftables iproute2", want),
        Finding("promtool", version("promtool", "--version"), "checking alert rules", f"{apt}prometheus", want),
        Finding(
            "systemd-analyze",
            version("systemd-analyze", "--version"),
            "checking the systemd units",
            f"{apt}systemd",
            want,
        ),
    ]


def nvcc() -> str:
    """nvcc, on PATH or where the toolkit puts it."""
    for compiler in ("nvcc", "/usr/local/cuda/bin/nvcc"):
        if shutil.which(compiler):
            done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20, check=False)
            return done.stdout.strip().splitlines()[-1] if done.stdout else compiler
    return ""


def show(findings: list[Finding]) -> None:
    """Print the table a person reads."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        if finding.found:
            print(f"  ✓ {finding.name:<{width}}  {finding.found}")
        else:
            mark = "✗" if finding.required else "·"
            print(f"  {mark} {finding.name:<{width}}  missing: {finding.enables}. Remedy: {finding.remedy}")


def main(argv: list[str] | None = None) -> int:
    """Report; 0 when ``tools/run`` can work here, else 1."""
    parser = argparse.ArgumentParser(prog="tools/doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(argv)
    findings = look()
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        show(findings)
    lacking = [finding for finding in findings if finding.required and not finding.found]
    if lacking and not options.json:
        print(f"\ntools/run cannot work here yet: {', '.join(finding.name for finding in lacking)} missing.")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
