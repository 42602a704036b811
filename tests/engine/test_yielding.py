import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.engine import yielding
from worker.engine.tether import tethered

THREADED = """
import threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print(flush=True)
time.sleep(60)
"""


def niceness_of_threads(pid):
    return [os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()]


def schedulers_of_threads(pid):
    return [os.sched_getscheduler(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()]


def test_a_child_gives_way_with_all_its_threads():
    own = os.getpriority(os.PRIO_PROCESS, 0)
    child = subprocess.Popen(
        [sys.executable, "-c", THREADED],
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=tethered(),  # noqa: PLW1509
    )
    with child:
        try:
            child.stdout.readline()
            assert niceness_of_threads(child.pid) == [own] * 2
            assert schedulers_of_threads(child.pid) == [os.SCHED_OTHER] * 2
            yielding.sink(child.pid)
            assert all(niceness > own for niceness in niceness_of_threads(child.pid))
            yielding.idle(child.pid)
            assert schedulers_of_threads(child.pid) == [os.SCHED_IDLE] * 2
        finally:
            child.kill()


def test_a_process_that_is_gone_needs_no_priority():
    gone = subprocess.Popen(["true"], start_new_session=True)
    gone.wait(10)
    yielding.sink(gone.pid)
    yielding.idle(gone.pid)
    assert yielding.catch_up(gone.pid)


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="sessions are not scheduled as groups here")
def test_a_session_starts_behind_others_and_catches_up():
    program = "from worker.engine import yielding; yielding.start_behind(); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with child:
        child.stdout.readline()
        group = Path(f"/proc/{child.pid}/autogroup")
        if not group.read_text():
            pytest.skip("a cgroup has taken the place of the session")
        assert int(group.read_text().split()[-1]) > 0
        limit = time.monotonic() + 10
        while not yielding.catch_up(child.pid):
            assert time.monotonic() < limit
            time.sleep(0.15)
        assert int(group.read_text().split()[-1]) == 0
