"""Reading an HTTP/1.1 response: bytes in, its status and parts of its body out. No I/O here."""

from __future__ import annotations

_LONGEST_LINES = 1 << 16
"""Bytes of a head, or of a line between two chunks."""


class ResponseError(ValueError):
    """Not a response of HTTP/1.1; treat whoever sent it as broken."""


class ResponseReader:
    """One response to a request that was not HEAD.

    Attributes:
        status: HTTP status, 0 until the head is complete.
        ended: the body is complete.
        kept: whoever sent it keeps the connection for another request.
    """

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self.kept = False
        self._buffer = b""
        self._chunked = False
        self._left = 0
        self._last = False

    def feed(self, data: bytes) -> bytes:
        """The part of the body that ``data`` brings; nothing more may come after the end.

        Raises:
            ResponseError: not a response, or more than one.
        """
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if not self.status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._keep(data)
                return b""
            self._head(data[:end])
            data = data[end + 4 :]
        if self._chunked:
            return self._chunks(data)
        self._left -= len(data)
        if self._left < 0:
            raise ResponseError("it goes on after its end")
        self.ended = not self._left
        return data

    def _head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ResponseError(f"{first[:80]!r} is no status line")
        self.status = int(rest[:3])
        headers = {name.lower(): value.strip().lower() for name, _, value in (line.partition(b":") for line in lines)}
        self._chunked = b"chunked" in headers.get(b"transfer-encoding", b"")
        if not self._chunked:
            if b"content-length" not in headers:
                raise ResponseError("it has neither chunks nor a length, so that its end cannot be told from a break")
            self._left = int(headers[b"content-length"])
        self.kept = version == b"HTTP/1.1" and headers.get(b"connection") != b"close"

    def _chunks(self, data: bytes) -> bytes:
        parts, at = [], 0
        while at < len(data):
            if self.ended:
                raise ResponseError("it goes on after its end")
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._keep(data[at:])
                break
            self._line(data[at:end])
            at = end + 2
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line(self, line: bytes) -> None:
        if self._last:  # trailers, up to an empty line
            self.ended = not line
        elif line:  # an empty one ends the chunk before
            self._left = int(line.partition(b";")[0], 16)
            if self._left < 0:
                raise ResponseError(f"a chunk of {self._left} bytes")
            self._last = not self._left

    def _keep(self, data: bytes) -> None:
        if len(data) > _LONGEST_LINES:
            raise ResponseError(f"no line end in {len(data)} bytes")
        self._buffer = data
