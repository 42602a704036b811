"""compute-sanitizer finds no bad access and no shared-memory race in a small case."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(220)]

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_small_case_is_clean(device, tool):
    if SANITIZER is None:
        pytest.skip("compute-sanitizer is not installed")
    case = Path(__file__).parent / "small_case.py"
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9"]
    # Our kernels only: torch's are not ours to judge, and each that is checked costs seconds. No errors of API calls:
    # torch and the runtime ask the driver for functions that it need not have, and what we call is checked by us.
    command += ["--kernel-name", "kns=eep3gpu", "--report-api-errors", "no", sys.executable, str(case)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not support this machine's device (virtualised)")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "small case: held" in done.stdout
