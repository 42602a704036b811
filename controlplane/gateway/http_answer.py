"""Reading an HTTP/1.1 response: bytes in, its status and parts of its body out. No I/O here; httptools parses."""

from __future__ import annotations

import httptools

_LONGEST_HEAD = 1 << 16


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
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._framed = False
        self._head = 0

    def feed(self, data: bytes) -> bytes:
        """The part of the body that ``data`` brings; nothing more may come after the end.

        Raises:
            ResponseError: not a response, or more than one.
        """
        if self.ended:
            raise ResponseError("it goes on after its end")
        self._parts.clear()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ResponseError(str(error.__context__ or error)) from error
        if not self.status:
            self._head += len(data)
            if self._head > _LONGEST_HEAD:
                raise ResponseError(f"no head in {self._head} bytes")
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    # --- what the parser calls ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """There may be only one."""
        if self.ended:
            raise ResponseError("it goes on after its end")

    def on_header(self, name: bytes, _: bytes) -> None:
        """Note what tells where the body ends."""
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        """Take the status; a body that ends with the connection could not be told from a break."""
        if not self._framed:
            raise ResponseError("it has neither chunks nor a length, so that its end cannot be told from a break")
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Collect it."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """It is complete."""
        self.ended, self.kept = True, self._parser.should_keep_alive()
