"""Ends a process group at once, and removes what its processes shared."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_TRACKER_S = 0.5
"""For a resource tracker to remove what the others left; it takes milliseconds."""
_SHARED = Path("/dev/shm")  # noqa: S108  where Linux keeps named semaphores and shared memory
_KINDS = ("sem.mp-", "sglang_loads_", "sgl_shm_")


def shared_by(group: int) -> frozenset[int]:
    """Inodes of what the group's processes share by name; what a dead one had can be asked no more."""
    return frozenset(inode for pid in _running(group) for inode in _mapped(pid))


def end_tree(group: int, *, known: frozenset[int] = frozenset(), within_s: float = 1.0) -> None:
    """SIGKILL every process of the group; return when none runs, or after ``within_s`` and half a second.

    Python's resource trackers go last and by themselves: when all others have died they remove the named semaphores and
    shared memory of the group. What nobody tracks (SGLang's load files, or everything once SGLang has killed its own
    tracker) is removed by its inode: only files that a process of this group had mapped, now or as ``known`` tells.
    """
    shared = known | shared_by(group)
    limit = time.monotonic() + within_s
    while (ending := [pid for pid, tracks in _running(group).items() if not tracks]) and time.monotonic() < limit:
        _await_end(ending, limit, kill=True)  # in rounds: one that is killed may have started another
    _await_end(_running(group), time.monotonic() + _TRACKER_S, kill=False)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    _remove(shared)


def _await_end(pids: Iterable[int], limit: float, *, kill: bool) -> None:
    """Sleep until all have ended; looking again and again would take the processor from those that recover."""
    with contextlib.ExitStack() as opened:
        ends = select.poll()
        waiting = 0
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                opened.callback(os.close, pidfd)
                ends.register(pidfd, select.POLLIN)
                waiting += 1
                if kill:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        while waiting and (left := limit - time.monotonic()) > 0:
            for pidfd, _ in ends.poll(left * 1e3):
                ends.unregister(pidfd)
                waiting -= 1


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


def _mapped(pid: int) -> set[int]:
    """Inodes under ``/dev/shm`` that the process has mapped; a semaphore's name there is one it no longer has."""
    try:
        mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in mapped if f" {_SHARED}/" in line}


def _remove(inodes: frozenset[int]) -> None:
    for path in _SHARED.iterdir() if inodes else ():
        with contextlib.suppress(FileNotFoundError):
            if path.name.startswith(_KINDS) and path.stat().st_ino in inodes:
                path.unlink()
