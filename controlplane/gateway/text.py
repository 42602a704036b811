"""Token ids in, text out, a piece at a time: whole characters only, and nothing beyond a stop string.

Both objects live as long as the request, not as long as a rank: a hand-over can neither break a character nor hide a
stop string that straddles it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

_INCOMPLETE = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens: a character is 4 bytes at most; more pending than this is not a character that is still coming."""


class Decoder(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:  # noqa: FBT001, FBT002  # theirs
        """Text of ``ids``."""
        ...


@dataclass
class Detokenizer:
    """Incremental decoding. Pieces joined together equal the decoding of all tokens at once.

    Text is decoded with the tokens of the piece before in front of it, since some tokenizers let a token's text depend
    on its neighbour; it is held back while it ends inside a character.
    """

    decoder: Decoder
    skip_special: bool = True
    _context: list[int] = field(default_factory=list)
    _pending: list[int] = field(default_factory=list)

    def push(self, token: int) -> str:
        """Text that ``token`` completes; empty while a character is incomplete."""
        self._pending.append(token)
        piece = self._piece()
        if piece.endswith(_INCOMPLETE) and len(self._pending) < _LONGEST_CHARACTER:
            return ""
        return self._settle(piece)

    def flush(self) -> str:
        """What is left at the end, broken characters included."""
        return self._settle(self._piece()) if self._pending else ""

    def _piece(self) -> str:
        before = self.decoder.decode(self._context, skip_special_tokens=self.skip_special)
        both = self.decoder.decode([*self._context, *self._pending], skip_special_tokens=self.skip_special)
        return both[len(before) :]

    def _settle(self, piece: str) -> str:
        if piece:  # a special token that is skipped has no text to stand as context
            self._context = self._pending
        self._pending = []
        return piece


@dataclass
class StopMatcher:
    """Finds the earliest of several stop strings in a text that comes in pieces.

    Attributes:
        stops: the strings, none empty.
        matched: the one that was found.
    """

    stops: tuple[str, ...] = ()
    matched: str = ""
    _held: str = ""

    def push(self, piece: str) -> str:
        """Text that surely stands before any stop string; after a match everything before it."""
        if not self.stops:
            return piece
        text = self._held + piece
        found = min(((text.find(stop), stop) for stop in self.stops if stop in text), default=None)
        if found is not None:
            at, self.matched = found
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
