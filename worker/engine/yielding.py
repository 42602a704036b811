"""A dead engine gives way to those that serve: what the kernel still has to do for it must not hold up a recovery."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_BEHIND = 10
"""A tenth of a core contended by engines: the dying must still give back memory and ports before a successor starts."""


def sink(group: int) -> None:
    """Put a process group behind those that serve: tearing it down is work that they do not wait for."""
    with contextlib.suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PGRP, group, max(_BEHIND, os.getpriority(os.PRIO_PROCESS, 0)))


def idle(pid: int) -> None:
    """Let a dying process have what nobody else wants: a core that only it is on counts as free for whoever wakes.

    Its low priority alone would not do: the kernel looks for free cores, not for cores with little on them, and while
    one core gives back memory all survivors would share the others.
    """
    with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
