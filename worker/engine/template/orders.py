"""What agent and template say to each other, one message to a packet of a ``SOCK_SEQPACKET`` socket."""

from __future__ import annotations

import msgspec

LONGEST = 65536
"""Bytes of one message."""


class Order(msgspec.Struct, frozen=True):
    """Start an engine.

    Attributes:
        arguments: of ``sglang.launch_server``.
        log: file that its output is appended to.
    """

    arguments: list[str]
    log: str


class Started(msgspec.Struct, frozen=True):
    """An engine's main process, which is the leader of a session of its own."""

    pid: int
