"""OpenAI's dialect, reading: ``/v1/completions`` and ``/v1/chat/completions``.

SGLang's additions (``top_k``, ``min_p``, ``repetition_penalty``, ``ignore_eos`` …) are understood too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from controlplane.gateway.errors import BadRequestError, ModelNotFoundError, UnsupportedError
from controlplane.gateway.fields import between, read, strings
from controlplane.gateway.generation import Spec
from controlplane.gateway.job import UNLIMITED, Job, answers, checked
from controlplane.gateway.openai_answer import ChatPresenter, CompletionPresenter
from controlplane.gateway.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controlplane.gateway.model import ServedModel

_MOST_STOPS = 32
_COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions."""


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class _Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    stop: str | list[str] = []
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    seed: int | None = None
    response_format: dict[str, Any] = {}
    # SGLang's additions
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = []
    skip_special_tokens: bool = True
    no_stop_trim: bool = False


class _Completion(_Common, kw_only=True, forbid_unknown_fields=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool = False


class _Message(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str = ""


class _Chat(_Common, kw_only=True, forbid_unknown_fields=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0


def parse_completion(body: Mapping[str, Any], *, model: ServedModel, request_id: str, seeded_ranks: bool) -> Job:
    """Understand one ``/v1/completions`` body.

    Raises:
        GatewayError: it cannot be served as it is.
    """
    asked = read(body, _Completion)
    if asked.echo and asked.logprobs is not None:
        raise UnsupportedError("echo with logprobs: logprobs of the prompt are not served", field="echo")
    between("logprobs", asked.logprobs or 0, 0, 20)
    spec = _spec(asked, model, seeded_ranks, limit=_limit(asked.max_tokens, _COMPLETION_TOKENS))
    specs = answers(
        _prompts(asked.prompt, model), asked.n, _with_logprobs(spec, asked.logprobs), model=model, seed=asked.seed
    )
    presenter = CompletionPresenter(
        f"cmpl-{request_id}", model, specs, echo=asked.echo, usage=asked.stream_options.include_usage
    )
    return Job(request_id, "completions", specs, stream=asked.stream, presenter=presenter)


def parse_chat(body: Mapping[str, Any], *, model: ServedModel, request_id: str, seeded_ranks: bool) -> Job:
    """Understand one ``/v1/chat/completions`` body.

    Raises:
        GatewayError: it cannot be served as it is.
    """
    asked = read(body, _Chat)
    if asked.top_logprobs and not asked.logprobs:
        raise BadRequestError("top_logprobs needs logprobs: true", field="top_logprobs")
    between("top_logprobs", asked.top_logprobs, 0, 20)
    if not asked.messages:
        raise BadRequestError("messages is empty; give at least one", field="messages")
    limit = _limit(asked.max_completion_tokens or asked.max_tokens, UNLIMITED)
    spec = _with_logprobs(
        _spec(asked, model, seeded_ranks, limit=limit), asked.top_logprobs if asked.logprobs else None
    )
    prompt = model.render([_message(message) for message in asked.messages])
    specs = answers([prompt], asked.n, spec, model=model, seed=asked.seed)
    presenter = ChatPresenter(f"chatcmpl-{request_id}", model, specs, usage=asked.stream_options.include_usage)
    return Job(request_id, "chat", specs, stream=asked.stream, presenter=presenter)


def _spec(asked: _Common, model: ServedModel, seeded_ranks: bool, *, limit: int) -> Spec:  # noqa: FBT001  # private
    if asked.model and asked.model != model.name:
        raise ModelNotFoundError(f"model {asked.model!r} is not served here, {model.name!r} is", field="model")
    if asked.response_format.get("type", "text") != "text":
        raise UnsupportedError("response_format other than text: grammars keep state on the rank",
                               field="response_format")  # fmt: skip
    sampling = Sampling(
        max_new_tokens=limit,
        min_new_tokens=asked.min_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        repetition_penalty=asked.repetition_penalty,
        ignore_eos=asked.ignore_eos,
        stop_token_ids=tuple(asked.stop_token_ids),
        logit_bias=asked.logit_bias,
        sampling_seed=asked.seed,
    )
    return Spec(
        prompt=(),
        sampling=checked(sampling, vocabulary=model.vocabulary, seeded_ranks=seeded_ranks),
        stops=strings("stop", asked.stop, most=_MOST_STOPS),
        skip_special=asked.skip_special_tokens,
        keep_stop=asked.no_stop_trim,
    )


def _limit(asked: int | None, default: int) -> int:
    return default if asked is None else asked


def _with_logprobs(spec: Spec, top: int | None) -> Spec:
    return spec if top is None else replace(spec, logprobs=True, top_logprobs=top)


def _prompts(prompt: str | list[str | int | list[int]], model: ServedModel) -> list[tuple[int, ...]]:
    """Token ids of each prompt: a text, texts, ids, or lists of ids."""
    if isinstance(prompt, str):
        return [model.encode(prompt)]
    kinds = {type(each) for each in prompt}
    if len(kinds) != 1:
        raise BadRequestError("prompt mixes texts, ids and lists of ids, or is empty", field="prompt")
    if kinds == {int}:
        return [tuple(cast("list[int]", prompt))]
    return [model.encode(each) if isinstance(each, str) else tuple(cast("list[int]", each)) for each in prompt]


def _message(message: _Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        other = {str(part.get("type")) for part in content} - {"text"}
        if other:
            raise UnsupportedError(f"messages: content of type {', '.join(sorted(other))}; text only", field="messages")
        content = "".join(str(part.get("text", "")) for part in content)
    return {"role": message.role, "content": content or ""}
