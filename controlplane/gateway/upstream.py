"""Reading a rank's answer: bytes of SGLang's event stream in, what happened out. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

_END = b"[DONE]"
Logprob = tuple[float | None, int, Any]
"""(logprob, token id, text or None), as SGLang has it."""


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that were not there before, and how the answer ended if it did."""

    ids: tuple[int, ...] = ()
    finish: str = ""
    """``length`` or ``stop``."""
    matched: int | str | None = None
    """The token that stopped it."""
    logprobs: tuple[Logprob, ...] = ()
    top_logprobs: tuple[tuple[Logprob, ...] | None, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """The rank answered with an error.

    Attributes:
        status: HTTP status or SGLang's code inside the stream.
        message: SGLang's words.
    """

    status: int
    message: str

    @property
    def final(self) -> bool:
        """The request itself is at fault: any rank would say the same."""
        return 400 <= self.status < 500 and self.status not in (408, 429)


class _Meta(msgspec.Struct):
    completion_tokens: int = 0
    finish_reason: dict[str, Any] | None = None
    output_token_logprobs: list[Logprob] | None = None
    output_top_logprobs: list[list[Logprob] | None] | None = None


class _Event(msgspec.Struct):
    output_ids: tuple[int, ...] = ()
    meta_info: _Meta = msgspec.field(default_factory=_Meta)
    error: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_Event)


@dataclass
class AnswerReader:
    """One answer of one rank.

    SGLang sends in each event all tokens so far, or with ``--incremental-streaming-output`` only the new ones; the
    count in ``completion_tokens`` tells which.
    """

    _buffer: bytes = b""
    _seen: int = 0
    ended: bool = field(default=False)
    """The end mark came: nothing was cut off."""

    def feed(self, data: bytes) -> list[Tokens | Refusal]:
        """What ``data`` completes.

        Raises:
            msgspec.MsgspecError: not what SGLang sends; treat the rank as broken.
        """
        *lines, self._buffer = (self._buffer + data).split(b"\n\n")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Tokens | Refusal | None:
        if not line.startswith(b"data: "):
            return None
        content = line[6:]
        if content == _END:
            self.ended = True
            return None
        event = _decoder.decode(content)
        if event.error is not None:
            return Refusal(int(event.error.get("code") or 500), str(event.error.get("message", event.error)))
        finish = event.meta_info.finish_reason or {}
        if finish.get("type") == "abort":  # its output_ids repeat what was sent
            return Refusal(int(finish.get("status_code") or 500), str(finish.get("message", "aborted")))
        return self._tokens(event.output_ids, event.meta_info, finish)

    def _tokens(self, ids: tuple[int, ...], meta: _Meta, finish: dict[str, Any]) -> Tokens:
        if self._seen + len(ids) > meta.completion_tokens:  # all tokens so far
            ids = ids[self._seen :]
        self._seen += len(ids)
        if not finish and meta.output_token_logprobs is None:
            return Tokens(ids=ids)
        return Tokens(
            ids=ids,
            finish=str(finish.get("type", "")),
            matched=finish.get("matched"),
            logprobs=tuple(_last(meta.output_token_logprobs, len(ids))),
            top_logprobs=tuple(
                tuple(choices) if choices is not None else None for choices in _last(meta.output_top_logprobs, len(ids))
            ),
        )


def _last(values: list[Any] | None, count: int) -> list[Any]:
    return values[len(values) - count :] if values and count else []
