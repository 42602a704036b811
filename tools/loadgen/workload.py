"""Requests made from a seed: prompts of real text, so that the model answers in kind and experts load as in life."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]  # typeshed has no stub for it
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from tools.loadgen.answers import Ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Workload:
    """An endless, repeatable sequence of requests.

    Attributes:
        model: folder with the model's ``tokenizer.json``.
        seed: the same seed gives the same requests.
        prompt_tokens: shortest and longest prompt.
        answer_tokens: shortest and longest answer.
        temperature: 0 for greedy.
        ignore_eos: answers have exactly the length asked for.
    """

    model: Path
    seed: int = 0
    prompt_tokens: tuple[int, int] = (8, 96)
    answer_tokens: tuple[int, int] = (64, 64)
    temperature: float = 0.0
    ignore_eos: bool = True

    @cached_property
    def _text(self) -> list[int]:
        """The language reference as one row of token ids."""
        tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        pages = [text for _, text in sorted(topics.items())]
        return [token for page in tokenizer.encode_batch(pages) for token in page.ids]

    def __iter__(self) -> Iterator[Ask]:
        """Requests 0, 1, 2 …, each a function of (seed, number)."""
        number = 0
        while True:
            yield self.ask(number)
            number += 1

    def ask(self, number: int) -> Ask:
        """Request ``number``."""
        rng = random.Random(self.seed * 1_000_003 + number)
        length = rng.randint(*self.prompt_tokens)
        start = rng.randrange(len(self._text) - length)
        return Ask(
            id=number,
            prompt=tuple(self._text[start : start + length]),
            max_new_tokens=rng.randint(*self.answer_tokens),
            temperature=self.temperature,
            seed=rng.randrange(2**31),
            ignore_eos=self.ignore_eos,
        )
