"""Ends a process group at once, and lets what its processes shared go with them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

_TRACKER_S = 0.5
"""For a resource tracker to remove what the others left; it takes milliseconds."""
_LOOK_S = 0.005


def end_tree(group: int, *, within_s: float = 1.0) -> None:
    """SIGKILL every process of the group; return when none runs, or after ``within_s`` and half a second.

    Python's resource trackers go last and by themselves: when all others have died they remove the named semaphores and
    shared memory of the group (``/dev/shm/sem.mp-…``), which nobody else could tell from those of a program that lives.
    """
    limit = time.monotonic() + within_s
    while (ending := [pid for pid, tracks in _running(group).items() if not tracks]) and time.monotonic() < limit:
        for pid in ending:  # in rounds: one that is killed may have started another
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S)
    limit = time.monotonic() + _TRACKER_S
    while _running(group) and time.monotonic() < limit:
        time.sleep(_LOOK_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _running(group: int) -> dict[int, bool]:
    """Processes of the group that have not ended, and whether each is a resource tracker."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            state, _, owner = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(owner) == group and state not in "ZX":
                found[int(process.name)] = b"multiprocessing.resource_tracker" in (process / "cmdline").read_bytes()
    return found
