"""Ends a process group at once, and removes what its processes shared."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

_TRACKER_S = 0.5
"""For a resource tracker to remove what the others left; it takes milliseconds."""
_LOOK_S = 0.005
_SHARED = Path("/dev/shm")  # noqa: S108  where Linux keeps named semaphores and shared memory
_KINDS = ("sem.mp-", "sglang_loads_", "sgl_shm_")


def end_tree(group: int, *, within_s: float = 1.0) -> None:
    """SIGKILL every process of the group; return when none runs, or after ``within_s`` and half a second.

    Python's resource trackers go last and by themselves: when all others have died they remove the named semaphores and
    shared memory of the group. What nobody tracks (SGLang's load files, or everything once SGLang has killed its own
    tracker) is removed by its inode: only files that a process of this group had mapped.
    """
    shared = {inode for pid in _running(group) for inode in _mapped(pid)}
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
    _remove(shared)


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


def _remove(inodes: set[int]) -> None:
    for path in _SHARED.iterdir() if inodes else ():
        with contextlib.suppress(FileNotFoundError):
            if path.name.startswith(_KINDS) and path.stat().st_ino in inodes:
                path.unlink()
