"""Turns what the host learns into words that a running graph reads."""

from __future__ import annotations

import os
import selectors
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from native import _cuda
    from native.cuda.vocabulary import ControlLike

_WATCH_S: Final = 0.005
"""How often the control block is looked at: the delay of an abort that the agent asks for."""


class Watcher:
    """A thread that waits for peers' processes to end and for the agent to abort or fence."""

    def __init__(self, *, died: Callable[[int], None], control: ControlLike | None, rank: _cuda.DeviceRank) -> None:
        self._died, self._control, self._rank = died, control, rank
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._pidfds: dict[int, int] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="eep-cuda-watch", daemon=True)
        self._thread.start()

    def watch(self, peer: int, pid: int) -> None:
        """Call ``died(peer)`` when ``pid`` ends; at once if it is gone already."""
        self.forget(peer)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._died(peer)
            return
        with self._lock:
            self._pidfds[peer] = pidfd
            self._selector.register(pidfd, selectors.EVENT_READ, peer)
        os.eventfd_write(self._wake, 1)

    def forget(self, peer: int) -> None:
        """Stop watching the peer's process."""
        with self._lock:
            pidfd = self._pidfds.pop(peer, None)
            if pidfd is not None:
                self._selector.unregister(pidfd)
                os.close(pidfd)

    def stop(self) -> None:
        """End the thread and close every descriptor."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for peer in list(self._pidfds):
            self.forget(peer)
        self._selector.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(_WATCH_S if self._control is not None else None):
                if key.data is None:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                    continue
                self._died(key.data)
                self.forget(key.data)
            if self._control is not None:
                self._rank.call_off(self._control.abort_epoch)
                if self._control.fenced:
                    self._rank.fence()
