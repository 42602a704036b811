"""What was asked and what came back."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise

import msgspec


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    id: int
    prompt: tuple[int, ...]
    """Token ids."""
    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of the sampling, when the temperature is not 0."""
    ignore_eos: bool = True
    """Answer with exactly ``max_new_tokens``, so that work is comparable between runs."""


class Outcome(StrEnum):
    """How a request ended for the client."""

    COMPLETE = "complete"
    """A finish reason came, and the stream's end mark."""
    CUT = "cut"
    """The stream ended without a finish reason."""
    ERROR = "error"
    """An error answer, or no answer."""


class Answer(msgspec.Struct, kw_only=True):
    """One answer as it was seen; times are ``time.monotonic_ns()`` of the client."""

    ask: Ask
    outcome: Outcome = Outcome.CUT
    tokens: list[int] = msgspec.field(default_factory=list)
    arrived_ns: list[int] = msgspec.field(default_factory=list)
    """One for each token."""
    sent_ns: int = 0
    ended_ns: int = 0
    finish: str = ""
    """``length`` or ``stop``."""
    error: str = ""
    tries: int = 1
    """Times it was sent by the client: more than 1 only when the client itself was told to try again."""
    resumed: int = 0
    """How often the gateway says that another rank took it over."""
    exact: bool = True
    """What the gateway says about those."""
    ranks: list[int] = msgspec.field(default_factory=list)
    """Ranks that served it, in order, if the gateway says so."""

    @property
    def longest_gap_ms(self) -> float:
        """Longest time between two tokens, ms; 0 with fewer than two."""
        return max((b - a for a, b in pairwise(self.arrived_ns)), default=0) / 1e6

    @property
    def first_token_ms(self) -> float:
        """From sending to the first token, ms; 0 without a token."""
        return (self.arrived_ns[0] - self.sent_ns) / 1e6 if self.arrived_ns else 0.0
