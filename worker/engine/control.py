"""The engine's control thread: the agent's socket and readiness."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from native import _native
from schemas.messages import Ask, Commit, Discard, Drain, Prepare, Ready, ToAgent, ToEngine
from worker.engine import frames
from worker.engine.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.messages import EngineStatus, Hello
    from worker.engine.membership import Membership
    from worker.engine.preparing import Preparing
    from worker.engine.settings import EngineSettings

log = logging.getLogger("eep.engine")

_RECONNECT_S = 0.1
_PROBE_S = 0.1


class Control:
    """Talks to the agent for as long as the engine lives; an agent that goes away is looked for again."""

    def __init__(
        self,
        *,
        settings: EngineSettings,
        hello: Hello,
        block: _native.ControlBlock,
        membership: Membership,
        preparing: Preparing,
        status: Callable[[], EngineStatus],
    ) -> None:
        self._settings = settings
        self._hello = hello
        self._block = block
        self._membership = membership
        self._preparing = preparing
        self._status = status
        self._outgoing: deque[ToAgent] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ready: Ready | None = None
        self._turned = threading.Event()
        self.draining = False

    def start(self) -> None:
        """Start the threads."""
        self._preparing.start(self.tell)
        threading.Thread(target=self._run, name="eep-control", daemon=True).start()
        threading.Thread(target=self._probe, name="eep-ready", daemon=True).start()

    def tell(self, message: ToAgent) -> None:
        """Queue a message to the agent; never blocks."""
        self._outgoing.append(message)
        os.eventfd_write(self._wake, 1)

    def ticked(self) -> None:
        """The scheduler's loop turns."""
        if not self._turned.is_set():
            self._turned.set()

    # --- the socket ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.connect(self._settings.agent_socket)
                    frames.send(connection, msgspec.msgpack.encode(self._hello))
                    if self._ready is not None:
                        frames.send(connection, msgspec.msgpack.encode(self._ready))
                    self._talk(connection)
            except (OSError, LinkError, msgspec.MsgspecError) as error:
                log.debug("agent at %s: %s", self._settings.agent_socket, error)
            time.sleep(_RECONNECT_S)

    def _talk(self, connection: socket.socket) -> None:
        while True:
            readable, _, _ = select.select([connection.fileno(), self._wake], [], [])
            if self._wake in readable:
                os.eventfd_read(self._wake)
            while self._outgoing:
                frames.send(connection, msgspec.msgpack.encode(self._outgoing[0]))
                self._outgoing.popleft()
            if connection.fileno() in readable:
                payload, strays = frames.receive(connection)
                for fd in strays:
                    os.close(fd)
                if not payload:
                    return
                self._hear(msgspec.msgpack.decode(payload, type=ToEngine))

    def _hear(self, message: ToEngine) -> None:
        match message:
            case Prepare():
                self._preparing.submit(message)
            case Commit():
                self._membership.commit(message.epoch, message.cut, stamp=message.stamp)
            case Discard():
                self._membership.discard(message.epoch)
            case Drain():
                self.draining = True
                self._block.phase = _native.Phase.DRAINING
            case Ask():
                self.tell(self._status())

    # --- readiness ----------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Say Ready once the scheduler's loop turns and the HTTP server answers."""
        self._turned.wait()
        address = urlsplit(self._settings.serve_url)
        while True:
            connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=1.0)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/model_info")
                if connection.getresponse().status == http.client.OK:
                    self._ready = Ready(serve_url=self._settings.serve_url)
                    self.tell(self._ready)
                    return
            time.sleep(_PROBE_S)
