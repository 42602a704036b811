"""The template as the agent holds it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from worker.engine.errors import EngineError
from worker.engine.template.orders import LONGEST, Order, Started
from worker.engine.tether import tethered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class TemplateError(EngineError):
    """No engine can be forked: the template's log says why."""


class Template:
    """One rank's template; it is started when it is first needed, and anew if it has ended. Not for two at a time.

    Args:
        environment: of the template, and so of every engine.
        log: where its own output goes; engines write to theirs.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket

    async def fork(self, arguments: Sequence[str], log: Path) -> int:
        """Start an engine; the pid of its main process, which is the leader of its own session.

        The first call takes as long as SGLang's imports. One that is cancelled leaves no engine behind.

        Args:
            arguments: of ``sglang.launch_server``.
            log: file that the engine's output is appended to.

        Raises:
            TemplateError: the template ended.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._line, msgspec.msgpack.encode(Order(list(arguments), str(log))))
            answer = await loop.sock_recv(self._line, LONGEST)
        except ConnectionError:
            answer = b""
        except asyncio.CancelledError:
            self.end()
            raise
        if not answer:
            self.end()
            raise TemplateError(f"the process that engines are forked from ended. Remedy: read {self._log}")
        return msgspec.msgpack.decode(answer, type=Started).pid

    def _start(self) -> None:
        self.end()
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.engine.template", str(theirs.fileno())],
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=tethered(),  # noqa: PLW1509  nothing but two system calls
            )

    def end(self) -> None:
        """Kill it, and with it every engine that was forked from it."""
        if self._process is None:
            return
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        self._process = None
        self._line.close()
