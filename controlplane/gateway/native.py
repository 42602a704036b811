"""SGLang's own dialect: ``/generate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from controlplane.gateway.errors import BadRequestError, UnsupportedError
from controlplane.gateway.fields import between, read, strings
from controlplane.gateway.generation import Spec
from controlplane.gateway.job import Job, answers, checked, resume_facts
from controlplane.gateway.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from controlplane.gateway.errors import GatewayError
    from controlplane.gateway.generation import Finish, Generation, Piece
    from controlplane.gateway.job import Answered
    from controlplane.gateway.model import ServedModel

_MOST_STOPS = 32


class _SamplingParams(msgspec.Struct, forbid_unknown_fields=True):
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    logit_bias: dict[str, float] = {}
    sampling_seed: int | None = None
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int = 1


class _Generate(msgspec.Struct, forbid_unknown_fields=True):
    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] = {}
    stream: bool = False
    rid: str = ""
    return_logprob: bool = False
    top_logprobs_num: int = 0
    logprob_start_len: int = -1


def parse(
    body: Mapping[str, Any], *, model: ServedModel, request_id: str, seeded_ranks: bool, incremental: bool
) -> Job:
    """Understand one ``/generate`` body.

    Args:
        body: the JSON object.
        model: tokenises text and bounds lengths.
        request_id: ours; the client's ``rid`` is given back in ``meta_info`` instead when there is one.
        seeded_ranks: see ``Sampling.inexact_after``.
        incremental: events carry only what is new (SGLang's ``--incremental-streaming-output``).

    Raises:
        GatewayError: it cannot be served as it is.
    """
    asked = read(body, _Generate)
    params = read(asked.sampling_params, _SamplingParams)
    if asked.logprob_start_len != -1:
        raise UnsupportedError("logprob_start_len: logprobs of the prompt are not served; leave it out",
                               field="logprob_start_len")  # fmt: skip
    between("top_logprobs_num", asked.top_logprobs_num, 0, 20)
    prompts, batch = _prompts(asked, model)
    spec = Spec(
        prompt=(),
        sampling=checked(_sampling(params), vocabulary=model.vocabulary, seeded_ranks=seeded_ranks),
        stops=strings("stop", params.stop, most=_MOST_STOPS),
        skip_special=params.skip_special_tokens,
        keep_stop=params.no_stop_trim,
        logprobs=asked.return_logprob,
        top_logprobs=asked.top_logprobs_num,
    )
    specs = answers(prompts, params.n, spec, model=model, seed=params.sampling_seed)
    presenter = NativePresenter(asked.rid or request_id, specs, batch=batch or params.n > 1, incremental=incremental)
    return Job(request_id, "generate", specs, stream=asked.stream, presenter=presenter)


def _prompts(asked: _Generate, model: ServedModel) -> tuple[list[tuple[int, ...]], bool]:
    """Token ids of each prompt, and whether there may be several."""
    if (asked.text is None) == (asked.input_ids is None):
        raise BadRequestError("give either text or input_ids", field="text")
    if asked.text is not None:
        texts = [asked.text] if isinstance(asked.text, str) else asked.text
        return [model.encode(text) for text in texts], not isinstance(asked.text, str)
    ids = asked.input_ids or []
    if all(isinstance(each, int) for each in ids):
        return [tuple(cast("list[int]", ids))], False
    if any(isinstance(each, int) for each in ids):
        raise BadRequestError("input_ids mixes ids and lists of ids", field="input_ids")
    return [tuple(each) for each in cast("list[list[int]]", ids)], True


def _sampling(params: _SamplingParams) -> Sampling:
    return Sampling(
        max_new_tokens=params.max_new_tokens,
        min_new_tokens=params.min_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty,
        ignore_eos=params.ignore_eos,
        stop_token_ids=tuple(params.stop_token_ids),
        logit_bias=params.logit_bias,
        sampling_seed=params.sampling_seed,
    )


@dataclass
class _Said:
    """What the client of one answer has been told."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    top_logprobs: list[Any] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.ids.extend(piece.ids)
        self.logprobs.extend(piece.logprobs)
        self.top_logprobs.extend(piece.top_logprobs)


class NativePresenter:
    """SGLang's events: ``{"text", "output_ids", "meta_info"}``, of all tokens so far or of the new ones."""

    def __init__(self, rid: str, specs: Sequence[Spec], *, batch: bool, incremental: bool) -> None:
        self._rid = rid
        self._specs = specs
        self._batch = batch
        self._incremental = incremental
        self._said = [_Said() for _ in specs]
        self._counts = [0] * len(specs)
        self._ranks: list[list[int]] = [[] for _ in specs]

    def piece(self, index: int, piece: Piece, generation: Generation) -> Any:
        """One event with ``finish_reason: null``; says which ranks served when that has changed."""
        self._counts[index] += len(piece.ids)
        said: _Said | Piece = piece
        if not self._incremental:
            said = self._said[index]
            said.add(piece)
        facts = None
        if generation.ranks != self._ranks[index]:
            self._ranks[index] = list(generation.ranks)
            facts = resume_facts(generation)
        return self._event(index, said, finish=None, facts=facts)

    def finish(self, index: int, finish: Finish, generation: Generation) -> Any:
        """The last event: the finish reason, and how the answer was made."""
        said = _Said() if self._incremental else self._said[index]
        return self._event(index, said, finish=_reason(finish, generation), facts=resume_facts(generation))

    def closing(self, generations: Sequence[Generation]) -> Any:  # noqa: ARG002  # SGLang has no last event
        """Nothing."""
        return None

    def whole(self, answered: Sequence[Answered]) -> Any:
        """One object, or a list of them for several prompts."""
        bodies = []
        for index, answer in enumerate(answered):
            said = _Said()
            for piece in answer.pieces:
                said.add(piece)
            self._counts[index] = len(said.ids)
            reason = _reason(answer.finish, answer.generation)
            bodies.append(self._event(index, said, finish=reason, facts=resume_facts(answer.generation)))
        return bodies if self._batch else bodies[0]

    def error(self, error: GatewayError) -> Any:
        """SGLang's error event."""
        return error.as_json()

    def _event(self, index: int, said: _Said | Piece, *, finish: Any, facts: Any) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "id": f"{self._rid}_{index}" if self._batch else self._rid,
            "finish_reason": finish,
            "prompt_tokens": len(self._specs[index].prompt),
            "completion_tokens": self._counts[index],
        }
        if self._specs[index].logprobs:
            meta["output_token_logprobs"] = list(said.logprobs)
            meta["output_top_logprobs"] = list(said.top_logprobs)
        if facts is not None:
            meta["eep"] = facts
        event: dict[str, Any] = {"text": said.text, "output_ids": list(said.ids), "meta_info": meta}
        if self._batch:
            event["index"] = index
        return event


def _reason(finish: Finish, generation: Generation) -> dict[str, Any]:
    if finish.reason == "length":
        return {"type": "length", "length": len(generation.tokens)}
    return {"type": finish.reason, "matched": finish.matched}
