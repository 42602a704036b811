"""Every kernel compiles for the devices we name, without warnings, and the hot ones keep everything in registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "native/src/cuda/kernels.cu"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin:/opt/cuda/bin")

needs_nvcc = pytest.mark.skipif(
    NVCC is None, reason="no CUDA compiler on PATH or in /usr/local/cuda: kernels are not compiled here"
)

HOT = {"dispatch_kernel": 4, "combine_kernel": 2, "sync_kernel": 1}
"""Kernel → instances (builds × wire formats)."""


def resources(architecture: str, tmp_path: Path) -> dict[str, dict[str, int]]:
    """The compiler's resource report: mangled kernel name → registers, stack, spills."""
    command = [NVCC, "-std=c++20", "-O3", "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command += ["-Xcompiler", "-Wall,-Wextra,-Werror", "-o", str(tmp_path / "kernels.cubin"), str(KERNELS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report, kernel = {}, ""
    for line in done.stderr.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = entry[1]
            report[kernel] = {}
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            report[kernel].update(stack=int(frame[1]), spills=int(frame[2]) + int(frame[3]))
        elif used := re.search(r"Used (\d+) registers", line):
            report[kernel]["registers"] = int(used[1])
    return report


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_90", "sm_80"])
def test_kernels_compile_without_warnings_or_spills(architecture, tmp_path):
    report = resources(architecture, tmp_path)
    for name, instances in HOT.items():
        found = {kernel: used for kernel, used in report.items() if name in kernel}
        assert len(found) == instances, f"{name}: {sorted(report)}"
        for kernel, used in found.items():
            assert used["spills"] == 0, f"{kernel}: {used}"
            assert used["stack"] == 0, f"{kernel} keeps an array in local memory: {used}"
            assert used["registers"] <= 128, f"{kernel}: {used}; 512 threads of a block share 65536 registers"
