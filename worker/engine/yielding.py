"""An engine that starts gives way to those that serve, until it is ready itself.

On a host with as many ranks as cores or more, a restarted engine would otherwise take half a minute of processor time
(imports, weights) from the ranks whose clients it is to help. A lower priority would not do: who wakes up for the next
layer would still wait until the other's slice, of milliseconds, is over.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from worker.engine.tree import running

_CAP_SYS_NICE = 23
_PARAMETERS = os.sched_param(0)
_BEHIND = 15
"""A tenth of a core contended by engines: the dying must still give back memory and ports before a successor starts."""


def may_rise() -> bool:
    """Whether this process could give a child back what it took from it (CAP_SYS_NICE, or enough RLIMIT_NICE)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    by_right = limit == resource.RLIM_INFINITY or 20 - os.getpriority(os.PRIO_PROCESS, 0) <= limit
    return by_right or _capable()


def _capable() -> bool:
    lines = Path("/proc/self/status").read_bytes().splitlines()
    (effective,) = (int(line.split()[1], 16) for line in lines if line.startswith(b"CapEff:"))
    return bool(effective >> _CAP_SYS_NICE & 1)


def sink(group: int) -> None:
    """Put a process group behind those that serve: tearing it down is work that they do not wait for."""
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PGRP, group, max(_BEHIND, os.getpriority(os.PRIO_PROCESS, 0)))


def idle(pid: int) -> None:
    """Let a process have what nobody else wants: a core that only it is on counts as free for whoever wakes.

    Its low priority alone would not do: the kernel looks for free cores, not for cores with little on them, and while
    one core gives back memory all survivors would share the others.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for thread in _threads(pid):
            os.sched_setscheduler(thread, os.SCHED_IDLE, _PARAMETERS)


def rise(group: int) -> None:
    """Give every thread of a process group its share of the processor; a group that is gone needs none."""
    while sum(_raised(thread) for pid in running(group) for thread in _threads(pid)):
        pass  # a thread that began meanwhile may have it from one that was still to come


def _raised(thread: int) -> bool:
    """Whether the thread had what nobody else wants, and has its share from now on."""
    with contextlib.suppress(ProcessLookupError):
        if os.sched_getscheduler(thread) == os.SCHED_IDLE:
            os.sched_setscheduler(thread, os.SCHED_OTHER, _PARAMETERS)
            return True
    return False


def _threads(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return []
