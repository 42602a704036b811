"""Who takes over a killed process's memory gives it back late, holds nothing else, and ends by itself."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from worker.engine.tether import prctl
from worker.engine.tree import HEIR

PR_SET_CHILD_SUBREAPER = 36
MIB = 1 << 20
SIZE = 256 * MIB
LEAVER = f"""
import mmap, os, sys, time
from native import _native
held = mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held[:] = b"x" * {SIZE}
print(_native.leave_heir(linger_s=float(sys.argv[1])), flush=True)
time.sleep(600)
"""


@pytest.fixture
def leaver(request):
    reader, writer = os.pipe()
    linger_s = str(getattr(request, "param", 0.5))
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVER, linger_s], stdout=subprocess.PIPE, pass_fds=(writer,), start_new_session=True
    )
    os.close(writer)
    heir = psutil.Process(int(process.stdout.readline()))
    yield process, heir, reader
    for pid in (process.pid, heir.pid):
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    os.close(reader)


def until(look, *, within_s=20.0):
    limit = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < limit
        time.sleep(0.005)


def rss(process):
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def reaper():
    """Orphans become children of this process, which learns how they end."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0)


@pytest.mark.usefixtures("reaper")
def test_the_memory_outlives_the_process_for_a_while_and_goes_piece_by_piece(leaver):
    process, heir, _ = leaver
    process.kill()
    process.wait(timeout=10)
    assert rss(heir) > SIZE
    named, seen = process.args[0].encode(), set()
    said = Path(f"/proc/{heir.pid}/cmdline")

    def went():
        seen.add(rss(heir) // (16 * MIB))
        text = said.read_bytes()
        return gone(heir) or not (text.startswith(named) or not text)

    until(went)
    assert gone(heir), "nobody can tell any more whose heir it is"
    assert len(seen) > 4, "it went at once"
    assert os.waitstatus_to_exitcode(os.waitpid(heir.pid, 0)[1]) == 0


def test_what_runs_out_of_memory_ends_an_heir_first(leaver):
    process, heir, _ = leaver
    process.kill()
    process.wait(timeout=10)
    until(lambda: Path(f"/proc/{heir.pid}/oom_score_adj").read_text().strip() == "1000")


@pytest.mark.parametrize("leaver", [30.0], indirect=True)
def test_it_holds_no_descriptor_of_the_dead(leaver):
    process, heir, reader = leaver
    process.kill()
    assert select.select([reader], [], [], 10.0)[0], "the pipe of the dead is still open"
    assert os.read(reader, 1) == b""
    assert not gone(heir)
    assert heir.name() == HEIR


@pytest.mark.parametrize("leaver", [30.0], indirect=True)
def test_it_takes_no_signal_but_the_one_that_ends_its_group(leaver):
    process, heir, _ = leaver
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=10)
    assert not gone(heir)
    os.killpg(process.pid, signal.SIGKILL)
    until(lambda: gone(heir))


def test_while_the_process_lives_its_heir_does_nothing(leaver):
    process, heir, _ = leaver
    time.sleep(0.7)
    assert process.poll() is None
    assert sum(heir.cpu_times()[:2]) < 0.1
