"""Ending an engine's process group leaves neither processes nor what they shared."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.engine.test_heir import gone
from worker.engine.tree import end_heirs, end_tree, shared_by

SHARES = """
import multiprocessing, os, sys, time
from multiprocessing.shared_memory import SharedMemory
def child(lock): time.sleep(600)
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    lock, memory = context.Lock(), SharedMemory(create=True, size=4096)
    process = context.Process(target=child, args=(lock,)); process.start()
    print("sem." + lock._semlock.name.lstrip("/"), memory.name.lstrip("/"), flush=True)
    if sys.argv[1] == "lone": os.kill(process.pid, 9)
    time.sleep(600)
"""


def started(folder, which="all"):
    """A group of processes that share a semaphore and memory, and say their names."""
    program = folder / "shares.py"
    program.write_text(SHARES)
    return subprocess.Popen(
        [sys.executable, str(program), which], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("which", ["all", "lone"])
def test_nothing_of_a_killed_tree_is_left(tmp_path, which):
    tree = started(tmp_path, which)
    names = tree.stdout.readline().split()
    assert len(names) == 2
    shared = [Path("/dev/shm") / name for name in names]  # noqa: S108  where Linux keeps both
    assert all(path.exists() for path in shared)
    end_tree(tree.pid)
    assert tree.wait(timeout=5) == -9
    assert not [path for path in shared if path.exists()]
    tree.stdout.close()


def test_semaphores_go_even_when_the_tree_has_killed_its_own_tracker(tmp_path):
    tree = started(tmp_path)
    semaphore, memory = (Path("/dev/shm") / name for name in tree.stdout.readline().split())  # noqa: S108  as above
    trackers = [
        process
        for process in psutil.Process(tree.pid).children(recursive=True)
        if "resource_tracker" in " ".join(process.cmdline())
    ]
    assert trackers
    for tracker in trackers:
        tracker.kill()
    assert semaphore.exists()
    end_tree(tree.pid)
    assert not semaphore.exists()
    memory.unlink()  # of a kind that engines do not make
    tree.wait(timeout=5)
    tree.stdout.close()


def test_what_was_shared_is_known_when_all_that_shared_it_are_dead(tmp_path):
    tree = started(tmp_path)
    semaphore, memory = (Path("/dev/shm") / name for name in tree.stdout.readline().split())  # noqa: S108  as above
    known = shared_by(tree.pid)
    os.killpg(tree.pid, signal.SIGKILL)
    tree.wait(timeout=5)
    end_tree(tree.pid, known=known)
    assert not semaphore.exists()
    memory.unlink()  # of a kind that engines do not make
    tree.stdout.close()


def test_a_group_that_is_gone_is_no_error():
    gone = subprocess.Popen(["true"], start_new_session=True)
    gone.wait(timeout=5)
    end_tree(gone.pid)


HAS_AN_HEIR = """
import time
from native import _native
held = bytearray(64 << 20)
print(_native.leave_heir(linger_s=60.0), flush=True)
time.sleep(600)
"""


@pytest.fixture
def bequest():
    """A process, and its heir."""
    owner = subprocess.Popen(
        [sys.executable, "-c", HAS_AN_HEIR], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    yield owner, psutil.Process(int(owner.stdout.readline()))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(owner.pid, signal.SIGKILL)
    owner.wait(timeout=5)
    owner.stdout.close()


def test_heirs_are_spared_until_they_too_are_ended(bequest):
    owner, heir = bequest
    end_tree(owner.pid, spare_heirs=True)
    assert owner.wait(timeout=5) == -9
    assert not gone(heir)
    end_heirs(owner.pid)
    psutil.wait_procs([heir], timeout=5)
    assert gone(heir)


def test_only_heirs_are_ended_as_heirs(bequest):
    owner, heir = bequest
    end_heirs(owner.pid)
    psutil.wait_procs([heir], timeout=5)
    assert gone(heir)
    assert owner.poll() is None


def test_heirs_go_with_a_tree_that_is_to_leave_nothing(bequest):
    owner, heir = bequest
    end_tree(owner.pid)
    assert owner.wait(timeout=5) == -9
    psutil.wait_procs([heir], timeout=5)
    assert gone(heir)
