"""OpenAI's dialect, answering: bodies and stream events of completions and chat completions."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controlplane.gateway.job import resume_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlplane.gateway.errors import GatewayError
    from controlplane.gateway.generation import Finish, Generation, Piece, Spec
    from controlplane.gateway.job import Answered
    from controlplane.gateway.model import ServedModel
    from controlplane.gateway.upstream import Logprob


@dataclass
class _Tokens:
    """Tokens of one answer whose text is still undecided: said with the next text."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    top: list[tuple[Logprob, ...] | None] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.ids.extend(piece.ids)
        self.logprobs.extend(piece.logprobs)
        self.top.extend(piece.top_logprobs)


class _Presenter(ABC):
    """What both kinds share."""

    def __init__(self, name: str, model: ServedModel, specs: Sequence[Spec], *, kind: str, usage: bool) -> None:
        self._id = name
        self._model = model
        self._specs = specs
        self._kind = kind
        self._usage = usage
        self._created = int(time.time())
        self._undecided = [_Tokens() for _ in specs]

    def piece(self, index: int, piece: Piece, generation: Generation) -> Any:  # noqa: ARG002  # OpenAI's have no ranks
        """The event for new text; None while it is undecided."""
        waiting = self._undecided[index]
        waiting.add(piece)
        if not piece.text:
            return None
        self._undecided[index] = _Tokens()
        return self._event([self._delta(index, piece.text, waiting, None)])

    def finish(self, index: int, finish: Finish, generation: Generation) -> Any:
        """The event with the finish reason; ``eep`` says what was unusual in how the answer was made, if anything."""
        waiting, self._undecided[index] = self._undecided[index], _Tokens()
        event = self._event([self._delta(index, "", waiting, finish.reason)])
        return event | ({"eep": resume_facts(generation)} if generation.resumed or generation.missing else {})

    def closing(self, generations: Sequence[Generation]) -> Any:
        """The usage of the whole request, if it was asked for."""
        return self._event([]) | {"usage": self._count(generations)} if self._usage else None

    def whole(self, answered: Sequence[Answered]) -> Any:
        """The body of an answer that is not streamed."""
        choices = []
        for index, answer in enumerate(answered):
            tokens = _Tokens()
            for piece in answer.pieces:
                tokens.add(piece)
            text = "".join(piece.text for piece in answer.pieces)
            choices.append(self._choice(index, text, tokens, answer.finish.reason))
        generations = [answer.generation for answer in answered]
        body = self._event(choices) | {"object": self._kind, "usage": self._count(generations)}
        return body | {"eep": [resume_facts(each) for each in generations]}

    def error(self, error: GatewayError) -> Any:
        """An error event."""
        return error.as_json()

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = self._kind + ".chunk" if self._kind == "chat.completion" else self._kind
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model.name,
            "choices": choices,
        }

    def _count(self, generations: Sequence[Generation]) -> dict[str, int]:
        # a prompt counts once, however many answers it gets
        prompts = {id(each.spec.prompt): len(each.spec.prompt) for each in generations}
        made = sum(len(each.tokens) for each in generations)
        asked = sum(prompts.values())
        return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}

    def _text_of(self, token: int) -> str:
        text: str = self._model.tokenizer.decode([token], skip_special_tokens=False)
        return text

    @abstractmethod
    def _delta(self, index: int, text: str, tokens: _Tokens, finish: str | None) -> dict[str, Any]:
        """One entry of a stream event's ``choices``."""

    @abstractmethod
    def _choice(self, index: int, text: str, tokens: _Tokens, finish: str | None) -> dict[str, Any]:
        """One entry of a body's ``choices``."""


class CompletionPresenter(_Presenter):
    """``text_completion`` objects."""

    def __init__(self, name: str, model: ServedModel, specs: Sequence[Spec], *, echo: bool, usage: bool) -> None:
        super().__init__(name, model, specs, kind="text_completion", usage=usage)
        self._echo = [echo] * len(specs)
        self._offsets = [0] * len(specs)

    def _delta(self, index: int, text: str, tokens: _Tokens, finish: str | None) -> dict[str, Any]:
        return self._choice(index, text, tokens, finish)

    def _choice(self, index: int, text: str, tokens: _Tokens, finish: str | None) -> dict[str, Any]:
        if self._echo[index]:
            self._echo[index] = False
            prompt = self._model.tokenizer.decode(list(self._specs[index].prompt), skip_special_tokens=False)
            self._offsets[index] = len(prompt)
            text = prompt + text
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, tokens) if self._specs[index].logprobs else None,
            "finish_reason": finish,
        }

    def _logprobs(self, index: int, tokens: _Tokens) -> dict[str, Any]:
        texts = [self._text_of(token) for token in tokens.ids]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [logprob for logprob, _, _ in tokens.logprobs],
            "top_logprobs": [
                {self._text_of(token): logprob for logprob, token, _ in choices or ()} for choices in tokens.top
            ],
            "text_offset": offsets,
        }


class ChatPresenter(_Presenter):
    """``chat.completion`` objects."""

    def __init__(self, name: str, model: ServedModel, specs: Sequence[Spec], *, usage: bool) -> None:
        super().__init__(name, model, specs, kind="chat.completion", usage=usage)
        self._greeted = [False] * len(specs)

    def _delta(self, index: int, text: str, tokens: _Tokens, finish: str | None) -> dict[str, Any]:
        delta: dict[str, Any] = {} if self._greeted[index] else {"role": "assistant"}
        self._greeted[index] = True
        if text or finish is None:
            delta["content"] = text
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(index, tokens),
            "finish_reason": finish,
        }

    def _choice(self, index: int, text: str, tokens: _Tokens, finish: str | None) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": self._logprobs(index, tokens),
            "finish_reason": finish,
        }

    def _logprobs(self, index: int, tokens: _Tokens) -> dict[str, Any] | None:
        if not self._specs[index].logprobs:
            return None
        tops = tokens.top or [None] * len(tokens.ids)
        return {
            "content": [
                self._one(token, logprob) | {"top_logprobs": [self._one(each, lp) for lp, each, _ in choices or ()]}
                for token, (logprob, _, _), choices in zip(tokens.ids, tokens.logprobs, tops, strict=False)
            ]
        }

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = self._text_of(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
