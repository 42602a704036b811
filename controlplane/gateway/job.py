"""One client request after it was understood: the answers it asks for, whatever dialect it was written in."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from controlplane.gateway.errors import BadRequestError
from controlplane.gateway.fields import between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.gateway.errors import GatewayError
    from controlplane.gateway.generation import Finish, Generation, Piece, Spec
    from controlplane.gateway.model import ServedModel
    from controlplane.gateway.sampling import Sampling

MOST_ANSWERS = 64
"""Answers of one request: n × prompts."""
UNLIMITED = 1 << 30
"""Tokens: as many as the context has room for."""
_LARGEST_SEED = 2**31 - 1


class Presenter(Protocol):
    """Puts answers into a dialect."""

    def piece(self, index: int, piece: Piece, generation: Generation) -> Any:
        """The event for news of answer ``index``; None for nothing to say."""
        ...

    def finish(self, index: int, finish: Finish, generation: Generation) -> Any:
        """The event for the end of answer ``index``."""
        ...

    def closing(self, generations: Sequence[Generation]) -> Any:
        """A last event for the whole request; None for none."""
        ...

    def whole(self, answers: Sequence[Answered]) -> Any:
        """The body of an answer that is not streamed."""
        ...

    def error(self, error: GatewayError) -> Any:
        """An error inside a stream that has begun."""
        ...


@dataclass(frozen=True)
class Answered:
    """One complete answer."""

    generation: Generation
    pieces: tuple[Piece, ...]
    finish: Finish


@dataclass(frozen=True)
class Job:
    """What to do and how to say it.

    Attributes:
        id: of the request, also in logs and spans.
        dialect: the route's name, for metrics and the audit log.
        specs: the answers asked for.
        stream: whether the client wants events.
        presenter: makes events and bodies.
    """

    id: str
    dialect: str
    specs: tuple[Spec, ...]
    stream: bool
    presenter: Presenter


def resume_facts(generation: Generation) -> dict[str, Any]:
    """What an answer says of its own making, under ``eep``."""
    facts: dict[str, Any] = {
        "resumed": generation.resumed,
        "exact": not generation.inexact,
        "ranks": list(generation.ranks),
    }
    if generation.missing:
        facts["missing_experts"] = generation.missing
    return facts | ({"inexact_because": generation.inexact} if generation.inexact else {})


def checked(sampling: Sampling, *, vocabulary: int, seeded_ranks: bool) -> Sampling:
    """``sampling``, once every value is known to be in range.

    On seeded ranks a draw without ``top_k`` gets one that cuts nothing: SGLang numbers the candidates by token without
    it and by likelihood with it, for the whole batch (``layers/sampler.py``), so a neighbour would change the draw.

    Raises:
        BadRequestError: a value no rank would take; it must not reach one, some assert and die.
    """
    between("temperature", sampling.temperature, 0.0, 100.0)
    between("top_p", sampling.top_p, 1e-6, 1.0)
    between("min_p", sampling.min_p, 0.0, 1.0)
    between("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    between("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    between("repetition_penalty", sampling.repetition_penalty, 1e-6, 2.0)
    between("max_tokens", sampling.max_new_tokens, 1, UNLIMITED)
    between("min_tokens", sampling.min_new_tokens, 0, sampling.max_new_tokens)
    if sampling.top_k != -1:
        between("top_k", sampling.top_k, 1, UNLIMITED)
    if sampling.min_p and seeded_ranks and not sampling.greedy:
        raise BadRequestError("min_p cannot be used with seeded ranks: SGLang asserts; leave it out", field="min_p")
    for name, ids in (("stop_token_ids", sampling.stop_token_ids), ("logit_bias", _ids(sampling.logit_bias))):
        for token in ids:
            between(name, token, 0, vocabulary - 1)
    if seeded_ranks and not sampling.greedy and sampling.top_k == -1:
        return msgspec.structs.replace(sampling, top_k=vocabulary)
    return sampling


def _ids(bias: dict[str, float]) -> list[int]:
    try:
        return [int(token) for token in bias]
    except ValueError as error:
        raise BadRequestError(f"logit_bias has a key that is not a token id: {error}", field="logit_bias") from error


def answers(
    prompts: Sequence[tuple[int, ...]], count: int, spec: Spec, *, model: ServedModel, seed: int | None
) -> tuple[Spec, ...]:
    """``count`` answers like ``spec`` for each prompt, in the order in which OpenAI numbers them.

    Each answer has room in the context, and a seed of its own: without one in the request a drawn one, so that what
    was drawn can be drawn again on another rank.

    Raises:
        BadRequestError: too many answers, or a prompt that does not fit.
    """
    between("n", count, 1, MOST_ANSWERS)
    if not 1 <= len(prompts) * count <= MOST_ANSWERS:
        raise BadRequestError(
            f"{len(prompts)} prompts × n={count} answers are asked for; 1 to {MOST_ANSWERS} are possible", field="n"
        )
    if seed is not None:
        between("seed", seed, 0, _LARGEST_SEED)
    first = secrets.randbelow(_LARGEST_SEED) if seed is None else seed
    repeated = (prompt for prompt in prompts for _ in range(count))
    return tuple(_one(prompt, index, spec, model, first) for index, prompt in enumerate(repeated))


def _one(prompt: tuple[int, ...], index: int, spec: Spec, model: ServedModel, seed: int) -> Spec:
    allowed = min(spec.sampling.max_new_tokens, model.room(prompt))
    sampling = msgspec.structs.replace(
        spec.sampling,
        max_new_tokens=allowed,
        min_new_tokens=min(spec.sampling.min_new_tokens, allowed),
        sampling_seed=None if spec.sampling.greedy else (seed + index) % (_LARGEST_SEED + 1),
    )
    return replace(spec, prompt=prompt, sampling=sampling, eos=model.eos)
