from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tools.mainjob.processes import Household, ProcessEndedError

SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
FAMILY = textwrap.dedent(
    """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    print(os.getpid(), child.pid, flush=True)
    time.sleep(300)
    """
)

SHARES = textwrap.dedent(
    """
    import _multiprocessing, os, signal, time
    from multiprocessing import resource_tracker
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    name = f"/mp-test-{os.getpid()}"
    kept = _multiprocessing.SemLock(1, 1, 1, name, False)
    resource_tracker.register(name, "semaphore")
    print(os.getpid(), flush=True)
    time.sleep(300)
    """
)
MAPS = textwrap.dedent(
    """
    import mmap, os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(f"/dev/shm/sglang_loads_test_{os.getpid()}", "w+b") as file:
        file.truncate(4096)
        kept = mmap.mmap(file.fileno(), 4096)
    print(os.getpid(), flush=True)
    time.sleep(300)
    """
)
OUTLIVED = "import subprocess, sys; subprocess.Popen([sys.executable, sys.argv[1]], start_new_session=True).wait()"


def pids_in(log, *, deadline_s=20.0):
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if log.exists() and (words := log.read_text().split()):
            return [int(word) for word in words]
        time.sleep(0.02)
    raise AssertionError(f"nothing in {log}")


def gone(pid, *, deadline_s=10.0):
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_stubborn_program_and_its_orphans_are_gone_at_the_end(tmp_path):
    with Household(tmp_path, grace_s=0.5) as household:
        program = household.start("family", [sys.executable, "-c", FAMILY])
        parent, child = pids_in(program.log)
    assert gone(parent)
    assert gone(child)


def test_what_a_program_shared_goes_with_it(tmp_path):
    shares = tmp_path / "shares.py"
    shares.write_text(SHARES)
    with Household(tmp_path, grace_s=1.0) as household:
        program = household.start("shares", [sys.executable, "-c", OUTLIVED, str(shares)])
        (owner,) = pids_in(program.log)
        semaphore = Path(f"/dev/shm/sem.mp-test-{owner}")  # noqa: S108  where Linux keeps it
        assert semaphore.exists()
    assert gone(owner)
    assert not semaphore.exists()


def test_what_nobody_tracks_goes_with_the_program_that_mapped_it(tmp_path):
    with Household(tmp_path, grace_s=0.5) as household:
        program = household.start("maps", [sys.executable, "-c", MAPS])
        (pid,) = pids_in(program.log)
        file = Path(f"/dev/shm/sglang_loads_test_{pid}")  # noqa: S108  where Linux keeps it
        assert file.exists()
    assert not file.exists()


def test_an_orphan_of_a_killed_program_is_adopted_and_ended(tmp_path):
    with Household(tmp_path, grace_s=0.5) as household:
        program = household.start("family", [sys.executable, "-c", FAMILY])
        _, child = pids_in(program.log)
        program.kill()
        assert program.process.wait(10) == -signal.SIGKILL
        assert psutil.pid_exists(child)
    assert gone(child)


def test_programs_die_with_a_main_job_that_is_killed(tmp_path):
    script = textwrap.dedent(
        f"""
        import pathlib, sys, time
        from tools.mainjob.processes import Household
        with Household(pathlib.Path({str(tmp_path)!r})) as household:
            household.start("sleeper", [sys.executable, "-c", {SLEEPER!r}])
            time.sleep(300)
        """
    )
    main = subprocess.Popen([sys.executable, "-c", script])
    (sleeper,) = pids_in(tmp_path / "sleeper.log")
    os.kill(main.pid, signal.SIGKILL)
    main.wait(10)
    assert gone(sleeper)


def test_an_early_end_is_told_with_the_log(tmp_path):
    with Household(tmp_path) as household:
        program = household.start("short", [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"])
        program.process.wait(10)
        with pytest.raises(ProcessEndedError, match=r"short ended with code 3; .*\n.*no such model"):
            program.check()


def test_what_others_started_is_left_alone(tmp_path):
    other = subprocess.Popen(["sleep", "60"])
    with Household(tmp_path, grace_s=0.5) as household:
        household.start("one", ["sleep", "60"])
    assert other.poll() is None
    other.kill()
    other.wait(10)


def test_two_programs_cannot_share_a_name(tmp_path):
    with Household(tmp_path) as household:
        household.start("one", ["sleep", "60"])
        with pytest.raises(ValueError, match="'one' is running already"):
            household.start("one", ["sleep", "60"])
