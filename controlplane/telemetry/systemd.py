"""systemd's notification protocol: one datagram of ``KEY=value`` lines to the socket that ``NOTIFY_SOCKET`` names.

Source: sd_notify(3). Without the variable every call does nothing, so that a process started by hand needs no flag.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class Notifier:
    """Says to systemd when the process is ready, what it does, and that its loop still turns."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    _status: str = ""

    def ready(self) -> None:
        """Start-up is over: etcd session up, first list done, HTTP bound."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """The line that ``systemctl status`` shows; sent only when it changes."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog: to be called from the loop that reconciles, never from a timer of its own."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """A stop was asked for and is under way."""
        self._send("STOPPING=1")

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often ``alive`` is due: a third of ``WatchdogSec``; None when systemd watches nothing here."""
        microseconds = self.environment.get("WATCHDOG_USEC")
        owner = self.environment.get("WATCHDOG_PID")
        if not microseconds or (owner and int(owner) != os.getpid()):
            return None
        return int(microseconds) / 3e6

    @property
    def heard(self) -> bool:
        """Whether anybody listens: only what systemd started has somebody to tell."""
        return bool(self.environment.get("NOTIFY_SOCKET"))

    def _send(self, message: str) -> None:
        address = self.environment.get("NOTIFY_SOCKET")
        if not address:
            return
        if address.startswith("@"):  # systemd writes an abstract socket's leading NUL as @
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            try:
                channel.sendto(message.encode(), address)
            except BlockingIOError:
                return  # systemd's queue is full: the next turn of the loop says it again
