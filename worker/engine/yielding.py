"""Engines that die or start give way to those that serve: nobody is to wait for what they need the processor for."""

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


def start_behind() -> None:
    """Put this process's session behind others, until ``catch_up``; whether it still gets a core depends on them only.

    Where sessions are scheduled as groups (autogroup), their priority decides between engines, and that of a process
    only within its own. Where they are not (a cgroup for each service), the service's weight does, and this does
    nothing.
    """
    _rank_session("self", _BEHIND)


def catch_up(session: int) -> bool:
    """Let a session have what others have; False if the kernel will not now and is to be asked again."""
    return _rank_session(str(session), 0)


def _rank_session(process: str, nice: int) -> bool:
    try:
        Path(f"/proc/{process}/autogroup").write_text(str(nice))
    except BlockingIOError:
        return False
    except OSError:
        return True  # it has ended, or this kernel knows no such thing
    return True
