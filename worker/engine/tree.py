"""Ends a process group at once, and removes what its processes shared.

Each process of an engine on CPUs has an heir (``_native.leave_heir``), which gives its memory back over seconds when
it is dead, and then ends: heirs can be spared.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from worker.engine import yielding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_TRACKER_S = 0.5
"""For a resource tracker to remove what the others left; it takes milliseconds."""
_SHARED = Path("/dev/shm")  # noqa: S108  where Linux keeps named semaphores and shared memory
HEIR = "eep-heir"
"""What an heir is named."""
_KINDS = ("sem.mp-", "sglang_loads_", "sgl_shm_")


class _Role(enum.Enum):
    """Of a process in its group."""

    OTHER = enum.auto()
    TRACKER = enum.auto()
    """Python's, of named semaphores and shared memory."""
    HEIR = enum.auto()


class EngineTree:
    """An engine's processes: one group, ended as one.

    Args:
        pid: of the main process, which is also the group's number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._shared: frozenset[int] = frozenset()

    def started(self) -> None:
        """Every process of the tree is there: note what they share, which a dead one can no longer tell."""
        self._shared = shared_by(self.pid)

    def kill(self, *, spare_heirs: bool = False) -> None:
        """End every process of the tree now, with what they shared; no wait is longer than a second.

        Args:
            spare_heirs: leave those that give the memory back slowly, for ten seconds or until ``end_heirs``.
        """
        yielding.sink(self.pid)
        end_tree(self.pid, known=self._shared, spare_heirs=spare_heirs)

    def end_heirs(self) -> None:
        """End those that still give memory back."""
        end_heirs(self.pid)


def shared_by(group: int) -> frozenset[int]:
    """Inodes of what the group's processes share by name; what a dead one had can be asked no more."""
    return frozenset(inode for pid in _running(group) for inode in _mapped(pid))


def end_tree(
    group: int, *, known: frozenset[int] = frozenset(), within_s: float = 1.0, spare_heirs: bool = False
) -> None:
    """SIGKILL every process of the group; return when none runs, or after ``within_s`` and half a second.

    ``spare_heirs`` lets heirs give the memory back slowly; ``end_heirs`` ends them later.

    Python's resource trackers go last and by themselves: when all others have died they remove the named semaphores and
    shared memory of the group. What nobody tracks (SGLang's load files, or everything once SGLang has killed its own
    tracker) is removed by its inode: only files that a process of this group had mapped, now or as ``known`` tells.
    """
    shared = known | shared_by(group)
    last = {_Role.TRACKER, _Role.HEIR}
    limit = time.monotonic() + within_s
    while (ending := _running(group, but=last)) and time.monotonic() < limit:
        _await_end(ending, limit, kill=True)  # in rounds: one that is killed may have started another
    _await_end(_running(group, but={_Role.HEIR}), time.monotonic() + _TRACKER_S, kill=False)
    _kill(_running(group, but={_Role.HEIR} if spare_heirs else set()))
    remove(shared)


def end_heirs(group: int) -> None:
    """SIGKILL what ``end_tree`` has spared. Another group may bear the number by now: only heirs are ended."""
    _kill(_running(group, but=set(_Role) - {_Role.HEIR}))


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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


def _running(group: int, *, but: Collection[_Role] = ()) -> list[int]:
    """Processes of the group that have not ended, less those of some roles."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            head, _, tail = (process / "stat").read_text().rpartition(")")
            state, _, owner = tail.split()[:3]
            if int(owner) == group and state not in "ZX" and _role(process, head.partition("(")[2]) not in but:
                found.append(int(process.name))
    return found


def _role(process: Path, name: str) -> _Role:
    if name == HEIR:
        return _Role.HEIR
    tracks = b"multiprocessing.resource_tracker" in (process / "cmdline").read_bytes()
    return _Role.TRACKER if tracks else _Role.OTHER


def _mapped(pid: int) -> set[int]:
    """Inodes under ``/dev/shm`` that the process has mapped; a semaphore's name there is one it no longer has."""
    try:
        mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in mapped if f" {_SHARED}/" in line}


def remove(inodes: frozenset[int]) -> None:
    """Remove those of SGLang's and Python's shared files that have these inodes."""
    for path in _SHARED.iterdir() if inodes else ():
        with contextlib.suppress(FileNotFoundError):
            if path.name.startswith(_KINDS) and path.stat().st_ino in inodes:
                path.unlink()
