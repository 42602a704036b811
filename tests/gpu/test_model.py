"""The device algorithms as host threads under ThreadSanitizer: ranks × blocks × threads, crashes, zombies, flips.

The model compiles the very headers that nvcc compiles (native/src/cuda/port.hpp says what differs).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++") or shutil.which("c++")
SCENARIOS = (
    "rounds",
    "run_ahead",
    "crash",
    "gossip",
    "silence",
    "flips",
    "zombie",
    "incarnation",
    "abort",
    "activation",
    "masked",
    "fixed",
)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    binary = tmp_path_factory.mktemp("model") / "model"
    command = [
        COMPILER,
        "-std=c++20",
        "-O1",
        "-g",
        "-fsanitize=thread",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]
    command += ["-o", str(binary), str(ROOT / "native/tests/model.cpp"), "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    if "libtsan" in done.stderr or "cannot find -ltsan" in done.stderr:
        pytest.skip("the compiler has no ThreadSanitizer runtime")
    assert done.returncode == 0, done.stderr[-4000:]
    return binary


def run(model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Address-space randomisation with many bits collides with the sanitizer's shadow on new kernels.
    command = [*(["setarch", "-R"] if shutil.which("setarch") else []), str(model), *arguments]
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)


def test_the_list_of_scenarios_is_complete(model):
    assert set(run(model, "--list").stdout.split()) == set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_protocol_holds(model, scenario):
    done = run(model, scenario, "6")  # every seventh write of the victim is a crash point
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
