"""The C++ tests: ranks as threads and plans under sanitizers, ranks as processes killed before each write."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BUILD_S = 500


def build(target, *, sanitize=""):
    """The test program ``target``; a second build only compiles what has changed."""
    folder = ROOT / "build" / f"native-tests-{sanitize or 'plain'}"
    folder.mkdir(parents=True, exist_ok=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        [
            "cmake",
            "-S",
            ROOT / "native",
            "-B",
            folder,
            "-DEEP_BUILD_TESTS=ON",
            f"-DEEP_SANITIZE={sanitize}",
            *generator,
        ],
        ["cmake", "--build", folder, "--target", target, "--parallel", str(os.cpu_count())],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "tests" / target


def fixed_addresses():
    """The thread sanitizer of GCC ≤ 13 refuses memory maps as random as newer kernels make them."""
    probe = ["setarch", "-R"]
    works = (
        shutil.which("setarch") and not subprocess.run([*probe, "true"], capture_output=True, check=False).returncode
    )
    return probe if works else []


def run(program, *, timeout_s, **environment):
    done = subprocess.run(
        [*fixed_addresses(), program],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitize", ["thread", "address"])
def test_no_access_of_any_rank_races_or_strays(sanitize):
    # The portable kernels: a sanitizer does not look inside masked vector loads.
    output = run(build("threads", sanitize=sanitize), timeout_s=240, EEP_ISA="portable")
    assert "exclusion_is_told ok" in output


@pytest.mark.timeout(900)
def test_no_planning_kernel_strays_or_overflows():
    output = run(build("planner", sanitize="address"), timeout_s=240)
    assert output.count(" ok") == 4


@pytest.mark.timeout(900)
def test_a_kill_before_any_write_leaves_the_survivors_whole():
    output = run(build("crashes"), timeout_s=240)
    assert int(output.split()[0]) > 300
