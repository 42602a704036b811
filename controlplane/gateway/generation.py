"""One answer being made, whichever ranks make it: ``event → instructions``, with no I/O and no clock.

What it guarantees:

* the client gets every token once, in order, from whichever attempt produced it first; a late word of an attempt that
  was left is ignored;
* an answer ends exactly once: finished, or with one error;
* only a finish reason ends an answer: a stream that just stops is a dead rank (SGLang's way of dying is HTTP 200 and
  silence);
* a request that ranks die of is given up after ``Patience.strikes``: it is not carried around the cluster.

A strike is a rank's death in which the request had made next to no progress there. A request that was merely present
when a rank was killed has made progress; one that kills makes none, at the latest when it is resumed. After a strike
the next attempt waits for a rank that speaks, or else until the membership has settled, so that two ranks killed at one
moment are one misfortune; and it goes to a rank without another request under suspicion, so that the one that kills
does not take the other along.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from controlplane.gateway.errors import DeadlineError, GatewayError, GivenUpError, RefusedByRankError
from controlplane.gateway.text import Decoder, Detokenizer, StopMatcher
from controlplane.gateway.upstream import Logprob, Refusal, Tokens

if TYPE_CHECKING:
    from controlplane.gateway.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to stop trying."""

    strikes: int = 2
    """Deaths without progress after which a request is given up."""
    progress_tokens: int = 4
    """Tokens from one rank that count as progress."""
    attempts: int = 32
    """Ranks that may begin on it and not finish, whatever the reason."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one answer is to be. A request for several (``n``, a list of prompts) has several."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    eos: tuple[int, ...] = ()
    skip_special: bool = True
    keep_stop: bool = False
    """The stop string or token stays in the text (SGLang's ``no_stop_trim``)."""
    logprobs: bool = False
    top_logprobs: int = 0


# --- events -----------------------------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True):
    """The request was admitted."""


class Assigned(msgspec.Struct, frozen=True):
    """The attempt that was asked for goes to ``rank``."""

    rank: int


class Received(msgspec.Struct, frozen=True):
    """The rank of ``attempt`` said something, while the epoch lacked that many experts (best effort)."""

    attempt: int
    what: Tokens | Refusal
    missing: int = 0


class Lost(msgspec.Struct, frozen=True):
    """The rank of ``attempt`` is gone, hangs, or broke off; ``accepted`` once it had begun to answer."""

    attempt: int
    reason: str
    accepted: bool


class HandOver(msgspec.Struct, frozen=True):
    """The rank of ``attempt`` is to be left although it works (drain)."""

    attempt: int
    reason: str


class DeadlinePassed(msgspec.Struct, frozen=True):
    """The request's time is up."""


class Abandoned(msgspec.Struct, frozen=True):
    """The client left, or no rank will come: end with ``error``."""

    error: GatewayError


Event: TypeAlias = Begin | Assigned | Received | Lost | HandOver | DeadlinePassed | Abandoned


# --- instructions -----------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    """Choose a rank and send it ``body``.

    ``settle`` follows a strike: wait for the membership to settle, and choose a rank without another such request.
    """

    attempt: int
    body: dict[str, Any]
    prompt: tuple[int, ...]
    settle: bool
    resumed: bool
    """The client has tokens already."""


class Abort(msgspec.Struct, frozen=True):
    """Tell the rank of ``attempt`` to stop, if it still can hear."""

    attempt: int


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """News for the client: text may be empty while a character or a stop string is undecided."""

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[Logprob, ...] = ()
    top_logprobs: tuple[tuple[Logprob, ...] | None, ...] = ()


class Finish(msgspec.Struct, frozen=True):
    """The answer is complete: ``length`` or ``stop``, and what stopped it."""

    reason: str
    matched: int | str | None = None


class Fail(msgspec.Struct, frozen=True):
    """The answer ends with an error."""

    error: GatewayError


Instruction: TypeAlias = Send | Abort | Piece | Finish | Fail


@dataclass
class Generation:
    """One answer's state. Feed events to ``handle`` and carry out what it returns, in order."""

    spec: Spec
    decoder: Decoder
    patience: Patience = field(default_factory=Patience)
    seeded_ranks: bool = False
    rid: str = ""
    tokens: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    resumed: int = 0
    retried: int = 0
    inexact: str = ""
    """Why tokens after a hand-over may not be those of an undisturbed run."""
    missing: int = 0
    """The most (layer, expert) pairs that any of its tokens was made without (best effort)."""
    done: bool = False
    attempt: int = 0
    _strikes: int = 0
    _begun: int = 0
    _progress: int = 0

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.decoder, skip_special=self.spec.skip_special)
        self._stops = StopMatcher(self.spec.stops)

    def handle(self, event: Event) -> list[Instruction]:
        """Take ``event`` in; nothing comes of it after the end, or when it is of an attempt that was left."""
        if self.done or getattr(event, "attempt", self.attempt) != self.attempt:
            return []
        match event:
            case Received(_, what, missing):  # nearly every event is one
                if isinstance(what, Refusal):
                    return self._refused(what)
                self.missing = max(self.missing, missing)
                return self._take(what)
            case Begin():
                return self._send(settle=False)
            case Assigned(rank):
                self.ranks.append(rank)
                return []
            case Lost(_, reason, accepted):
                return self._lost(reason, accepted=accepted)
            case HandOver():
                return [Abort(self.attempt), *self._again(settle=False)]
            case DeadlinePassed():
                said = (
                    f"the request's deadline passed after {len(self.tokens)} tokens; ask for fewer or allow more time"
                )
                return self._fail(DeadlineError(said))
            case Abandoned(error):
                return self._fail(error)

    @property
    def strikes(self) -> int:
        """Deaths that speak against the request."""
        return self._strikes

    def _send(self, *, settle: bool) -> list[Instruction]:
        self.attempt += 1
        self._progress = 0
        body: dict[str, Any] = {
            "rid": f"{self.rid}-{self.attempt}",
            "input_ids": [*self.spec.prompt, *self.tokens],
            "sampling_params": self.spec.sampling.body(self.tokens),
            "stream": True,
        }
        if self.spec.logprobs:
            body |= {"return_logprob": True, "top_logprobs_num": self.spec.top_logprobs}
        prompt = (*self.spec.prompt, *self.tokens)
        return [Send(self.attempt, body, prompt, settle=settle, resumed=bool(self.tokens))]

    def _take(self, news: Tokens) -> list[Instruction]:
        self._progress += len(news.ids)
        text = ""
        for index, token in enumerate(news.ids):
            self.tokens.append(token)
            last = index + 1 == len(news.ids)
            if last and news.finish == "stop" and not self.spec.keep_stop and token == news.matched:
                continue
            text += self._stops.push(self._text.push(token))
            if self._stops.matched:
                return self._stopped_by_text(news, index + 1, text)
        pieces: list[Instruction] = []
        if news.finish:
            text += self._tail()
            if self._stops.matched:
                return self._stopped_by_text(news, len(news.ids), text)
        if news.ids or text:
            piece = Piece(ids=news.ids, text=text, logprobs=news.logprobs, top_logprobs=news.top_logprobs)
            pieces.append(piece)
        if news.finish:
            self.done = True
            pieces.append(Finish(news.finish, news.matched))
        return pieces

    def _tail(self) -> str:
        text = self._stops.push(self._text.flush())
        return text if self._stops.matched else text + self._stops.flush()

    def _stopped_by_text(self, news: Tokens, used: int, text: str) -> list[Instruction]:
        self.done = True
        matched = self._stops.matched
        piece = Piece(
            ids=news.ids[:used],
            text=text + (matched if self.spec.keep_stop else ""),
            logprobs=news.logprobs[:used],
            top_logprobs=news.top_logprobs[:used],
        )
        return [piece, Abort(self.attempt), Finish("stop", matched)]

    def _refused(self, refusal: Refusal) -> list[Instruction]:
        self._begun += 1
        if refusal.final:
            return self._fail(RefusedByRankError(refusal.message))
        return self._again(settle=False)

    def _lost(self, reason: str, *, accepted: bool) -> list[Instruction]:
        self._begun += accepted
        struck = accepted and self._progress < self.patience.progress_tokens
        if struck:
            self._strikes += 1
        if self._strikes >= self.patience.strikes:
            said = (
                f"{self._strikes} ranks died while they began on this request (ranks {self.ranks}; the last: "
                f"{reason}); it is not tried on another one. Change it, or ask the operator to look at these ranks"
            )
            return self._fail(GivenUpError(said))
        return self._again(settle=struck)

    def _again(self, *, settle: bool) -> list[Instruction]:
        """Go on with another rank, unless the answer turns out to be complete already."""
        finish = self._complete()
        if finish is not None:
            self.done = True
            tail = self._tail()
            return [Piece(ids=(), text=tail), finish] if tail else [finish]
        if self._begun >= self.patience.attempts:
            said = f"{self._begun} times a rank began on the answer and could not finish it; try again later"
            return self._fail(GivenUpError(said))
        if self.tokens:
            self.resumed += 1
            self.inexact = self.inexact or self.spec.sampling.inexact_after(seeded_ranks=self.seeded_ranks)
        else:
            self.retried += 1
        return self._send(settle=settle)

    def _complete(self) -> Finish | None:
        """The finish reason that a rank died before it could give."""
        sampling = self.spec.sampling
        ends = (*sampling.stop_token_ids, *(() if sampling.ignore_eos else self.spec.eos))
        if self.tokens and self.tokens[-1] in ends and len(self.tokens) > sampling.min_new_tokens:
            return Finish("stop", self.tokens[-1])
        return Finish("length") if len(self.tokens) >= sampling.max_new_tokens else None

    def _fail(self, error: GatewayError) -> list[Instruction]:
        self.done = True
        return [Abort(self.attempt), Fail(error)]
