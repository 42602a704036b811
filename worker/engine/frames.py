"""Frames on local stream sockets: 4-byte little-endian length, then one msgpack message; descriptors may ride along."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from worker.engine.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 64 << 20
"""Longest frame that is believed."""

_MAX_FDS = 8


def pack(payload: bytes) -> bytes:
    """One frame."""
    return struct.pack("<I", len(payload)) + payload


def send(connection: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Write one frame, with duplicates of ``fds`` attached to its first byte."""
    data = pack(payload)
    sent = socket.send_fds(connection, [data], list(fds)) if fds else 0
    if sent < len(data):  # not even nothing may be sent to who has read all and left
        connection.sendall(data[sent:])


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One frame and the descriptors that came with it; the caller closes them. Empty bytes when the other side left.

    Raises:
        LinkError: the frame is longer than ``LIMIT`` or cut short.
        OSError: time-out or broken connection.
    """
    head, fds, _, _ = socket.recv_fds(connection, 4, _MAX_FDS)
    try:
        if not head:
            return b"", fds
        head += _exactly(connection, 4 - len(head))
        (length,) = struct.unpack("<I", head)
        if length > LIMIT:
            raise LinkError(f"a frame of {length} bytes: the other side speaks something else")  # noqa: TRY301
        return _exactly(connection, length), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise LinkError(f"the other side left in the middle of a frame, {size} bytes missing")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
