"""Processes that SGLang would spawn, forked beforehand: they wake with everything imported, and with no more than that.

Forking them when SGLang asks would hand them the state of the process that asks, which SGLang does not expect. Spawning
starts an interpreter that imports the same modules again. A blank was forked in between: it has the modules, and is
told what a spawned process is told, in the same way (``multiprocessing.spawn``).
"""

from __future__ import annotations

import os
import socket
import sys
from multiprocessing import (
    forkserver,
    popen_fork,
    popen_forkserver,
    popen_spawn_posix,
    reduction,
    resource_tracker,
    spawn,
    util,
)
from multiprocessing.context import SpawnProcess, set_spawning_popen
from typing import TYPE_CHECKING, NoReturn

import msgspec

from worker.engine import frames
from worker.engine.tether import tethered

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_waiting: list[tuple[int, socket.socket]] = []
"""Blanks of this process: pid, and the line to wake it by."""


def fork(count: int) -> None:
    """Fork blanks; what this process spawns from now on is made of them, as long as there are any."""
    for _ in range(count):
        ours, theirs = socket.socketpair()
        tie = tethered()
        pid = os.fork()
        if pid == 0:
            tie()
            for line in (ours, *(line for _, line in _waiting)):
                line.close()
            _waiting.clear()
            _become(theirs)
        theirs.close()
        _waiting.append((pid, ours))
    SpawnProcess._Popen = staticmethod(_start)  # type: ignore[assignment]  # noqa: SLF001 - what decides


def _start(process: BaseProcess) -> popen_forkserver.Popen | popen_spawn_posix.Popen:
    return _Woken(process) if _waiting else popen_spawn_posix.Popen(process)


class _Woken(popen_forkserver.Popen):
    """A process made of a blank, as ``multiprocessing`` holds one of its fork server: but this one is our child."""

    method = "spawn"
    poll = popen_fork.Popen.poll
    _fds: list[int]

    def _launch(self, process: BaseProcess) -> None:
        with os.fdopen(os.memfd_create("told"), "w+b") as told:
            set_spawning_popen(self)  # pickled connections ask it for their descriptors
            try:
                reduction.dump(spawn.get_preparation_data(process.name), told)
                reduction.dump(process, told)
            finally:
                set_spawning_popen(None)
            told.seek(0)
            self.pid, line = _waiting.pop(0)
            self.sentinel, its_end = os.pipe()  # readable when the child has ended
            our_end, ours = os.pipe()  # readable there when this process has ended
            self.finalizer = util.Finalize(self, util.close_fds, (self.sentinel, ours))  # type: ignore[attr-defined]
            fds = [told.fileno(), our_end, its_end, resource_tracker.getfd(), *self._fds]
            with line:
                variables = msgspec.msgpack.encode(dict(os.environ))  # a spawned process would have them
                frames.send(line, variables, fds)  # type: ignore[arg-type]  # getfd has started the tracker
        os.close(its_end)
        os.close(our_end)


def _become(line: socket.socket) -> NoReturn:
    """Sleep until this process is told what it is, then be that; ends with the process that forked it."""
    variables, fds = frames.receive(line)
    line.close()
    if not variables:
        os._exit(0)
    _take_over(msgspec.msgpack.decode(variables, type=dict[str, str]))
    told, parent, _its_end, tracker, *rest = fds
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]  # noqa: SLF001 - as spawn_main does
    forkserver._forkserver._inherited_fds = rest  # type: ignore[attr-defined]  # noqa: SLF001 - as forkserver does
    sys.exit(spawn._main(told, parent))  # noqa: SLF001 - the same


def _take_over(variables: dict[str, str]) -> None:
    """Only what differs: setproctitle finds room for a title by variables that are where the kernel put them."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in variables.items() if os.environ.get(name) != value})
