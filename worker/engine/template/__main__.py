"""``python -m worker.engine.template FD``: imports SGLang, then forks an engine for every order on socket FD."""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import signal
import socket
import sys

import msgspec

from worker.engine import yielding
from worker.engine.launch import SERVER
from worker.engine.template import blanks
from worker.engine.template.orders import LONGEST, Order, Started
from worker.engine.tether import tethered

_MODULES = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.registry",
    "worker.engine.plugin",
    "worker.engine.front",
    "worker.engine.engine",
)
"""What the processes of an engine import, less ``sglang.launch_server`` itself, which runs as the main module."""
_SPAWNED = 2
"""Processes that SGLang spawns for one rank: scheduler and detokenizer."""


def main() -> None:
    """Serve orders until the agent leaves; in a forked process, be an engine's main process."""
    line = socket.socket(fileno=int(sys.argv[1]))
    for module in _MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection would write to every object, and so copy every page that forks share
    order = _serve(line)
    if order is not None:
        _be_engine(order)


def _serve(line: socket.socket) -> Order | None:
    """The order of this process, in one that was forked for it; None when the agent has left."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how an engine ended: the agent sees that it did
    while packet := line.recv(LONGEST):
        order = msgspec.msgpack.decode(packet, type=Order)
        tie = tethered()
        pid = os.fork()
        if pid == 0:
            tie()
            os.setsid()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with line:  # said here, so that whoever hears it finds the session
                line.send(msgspec.msgpack.encode(Started(os.getpid())))
            return order
    return None


def _be_engine(order: Order) -> None:
    log = os.open(order.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    yielding.start_behind()
    blanks.fork(_SPAWNED)
    sys.argv = [SERVER, *order.arguments]
    runpy.run_module(SERVER, run_name="__main__")


if __name__ == "__main__":
    main()
