"""The served model as the gateway needs it: its tokenizer, its ends, its context and its chat template.

Only ``tokenizers`` and ``jinja2`` are used: the gateway starts in well under a second and needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from controlplane.gateway.errors import BadRequestError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_RESERVE = 8
"""Tokens kept free below the context: SGLang admits a little less than the context, and a resumed request must fit."""


class ModelError(ValueError):
    """The model's folder lacks something the gateway needs."""


@dataclass(frozen=True)
class ServedModel:
    """One model.

    Attributes:
        name: what clients call it.
        tokenizer: text ↔ ids.
        vocabulary: ids are below this.
        eos: ids that end an answer.
        context: prompt and answer together, tokens.
        chat_template: Jinja source, empty for none.
    """

    name: str
    tokenizer: Any
    vocabulary: int
    eos: tuple[int, ...]
    context: int
    chat_template: str = ""
    special: tuple[tuple[str, str], ...] = ()
    """``bos_token`` and the like, for the template."""

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Ids of ``text``; ``special`` adds what the tokenizer puts around a prompt (a BOS, where a model has one)."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer to ``prompt`` may have.

        Raises:
            BadRequestError: none is left, or an id is not of the vocabulary.
        """
        if not prompt:
            raise BadRequestError("the prompt is empty; give at least one token", field="prompt")
        if min(prompt) < 0 or max(prompt) >= self.vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < self.vocabulary)
            raise BadRequestError(
                f"the prompt has token id {wrong}, which is not below {self.vocabulary}", field="prompt"
            )
        left = self.context - _RESERVE - len(prompt)
        if left < 1:
            raise BadRequestError(
                f"the prompt has {len(prompt)} tokens, {self.name} takes {self.context - _RESERVE - 1}; shorten it",
                field="prompt",
            )
        return left

    def render(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Ids of a conversation, up to where the assistant speaks.

        Raises:
            UnsupportedError: the model has no chat template.
            BadRequestError: the template refuses the messages.
        """
        if not self.chat_template:
            raise UnsupportedError(f"{self.name} has no chat template; use /v1/completions", field="messages")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            text = environment.from_string(self.chat_template).render(
                messages=messages, add_generation_prompt=True, **dict(self.special)
            )
        except TemplateError as error:
            raise BadRequestError(f"the chat template refuses these messages: {error}", field="messages") from error
        return self.encode(text, special=False)

    @classmethod
    def load(cls, folder: Path, *, name: str = "", context_limit: int = 0) -> ServedModel:
        """Read a checkpoint's folder.

        Args:
            folder: with ``config.json`` and ``tokenizer.json``.
            name: what clients call it; the folder's name when empty.
            context_limit: lowers the model's own context, e.g. to the ranks' KV cache; 0 for no limit.

        Raises:
            ModelError: a file is missing or unreadable.
        """
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            settings = _optional(folder / "tokenizer_config.json")
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(
                f"{folder}: {error}. Remedy: the folder needs config.json and tokenizer.json (a fast tokenizer)"
            ) from error
        context = int(config.get("max_position_embeddings", 2048))
        template = settings.get("chat_template") or _text(folder / "chat_template.jinja")
        return cls(
            name=name or folder.name,
            tokenizer=tokenizer,
            vocabulary=int(config["vocab_size"]),
            eos=_ends(tokenizer, config, _optional(folder / "generation_config.json"), settings),
            context=min(context, context_limit) if context_limit else context,
            chat_template=template if isinstance(template, str) else "",
            special=tuple(
                (key, _token_text(settings[key]))
                for key in ("bos_token", "eos_token", "pad_token", "unk_token")
                if settings.get(key)
            ),
        )


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _optional(path: Path) -> dict[str, Any]:
    text = _text(path)
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _ends(
    tokenizer: Any, config: Mapping[str, Any], generation: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[int, ...]:
    """Every id that SGLang ends an answer at: those of both configurations, and the tokenizer's own."""
    ends: set[int] = set()
    for source in (config, generation):
        found = source.get("eos_token_id")
        ends.update(found if isinstance(found, list) else [] if found is None else [found])
    if settings.get("eos_token"):
        own = tokenizer.token_to_id(_token_text(settings["eos_token"]))
        ends.update([] if own is None else [own])
    return tuple(sorted(ends))
