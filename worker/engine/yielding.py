"""An engine that loads gives way to those that serve: it runs at a lower priority until it is ready itself.

On a host with as many ranks as cores or more, a restarted engine would otherwise take half a minute of processor time
(imports, weights) from the ranks whose clients it is to help.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

_CAP_SYS_NICE = 23
_LOWEST = 19
_BEHIND = 15
"""A tenth of a core contended by engines: the dying must still give back memory and ports before a successor starts."""


def allowed(niceness: int) -> int:
    """``niceness``, or 0 where this process could not take it back from a child (no CAP_SYS_NICE, no RLIMIT_NICE)."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    by_right = limit == resource.RLIM_INFINITY or 20 - own <= limit
    return min(niceness, _LOWEST - own) if by_right or _capable() else 0


def _capable() -> bool:
    lines = Path("/proc/self/status").read_bytes().splitlines()
    (effective,) = (int(line.split()[1], 16) for line in lines if line.startswith(b"CapEff:"))
    return bool(effective >> _CAP_SYS_NICE & 1)


def sink(group: int) -> None:
    """Put a process group behind those that serve: tearing it down is work that they do not wait for."""
    _set(group, max(_BEHIND, os.getpriority(os.PRIO_PROCESS, 0)))


def idle(pid: int) -> None:
    """Let a dying process have what nobody else wants: a core that only it is on counts as free for whoever wakes.

    Its low priority alone would not do: the kernel looks for free cores, not for cores with little on them, and while
    one core gives back memory all survivors would share the others.
    """
    with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def rise(group: int, *, behind: int = 0) -> None:
    """Give every thread of a process group the priority ``behind`` ours; a group that is gone needs none."""
    _set(group, min(os.getpriority(os.PRIO_PROCESS, 0) + behind, _LOWEST))


def _set(group: int, niceness: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PGRP, group, niceness)
