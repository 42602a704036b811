import os
import subprocess
import sys
from pathlib import Path

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


def test_a_child_gives_way_with_all_its_threads_and_stops_to_when_told():
    own, idle = os.getpriority(os.PRIO_PROCESS, 0), yielding.may_rise()
    child = subprocess.Popen(
        [sys.executable, "-c", THREADED],
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=tethered(idle=idle),  # noqa: PLW1509
    )
    with child:
        try:
            child.stdout.readline()
            assert schedulers_of_threads(child.pid) == [os.SCHED_IDLE if idle else os.SCHED_OTHER] * 2
            yielding.rise(child.pid)
            assert niceness_of_threads(child.pid) == [own] * 2
            assert schedulers_of_threads(child.pid) == [os.SCHED_OTHER] * 2
            yielding.sink(child.pid)
            assert all(niceness > own for niceness in niceness_of_threads(child.pid))
            yielding.idle(child.pid)
            assert schedulers_of_threads(child.pid) == [os.SCHED_IDLE] * 2
        finally:
            child.kill()


def test_what_could_not_be_taken_back_is_not_done():
    unprivileged = (
        "import os, resource; from worker.engine import yielding; resource.setrlimit(resource.RLIMIT_NICE, (0, 0));"
        "os.getuid() or os.setuid(65534); print(yielding.may_rise())"
    )
    assert subprocess.check_output([sys.executable, "-c", unprivileged], timeout=60) == b"False\n"


def test_a_process_that_is_gone_needs_no_priority():
    gone = subprocess.Popen(["true"], start_new_session=True)
    gone.wait(10)
    yielding.rise(gone.pid)
    yielding.idle(gone.pid)
