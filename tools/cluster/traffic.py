"""Requests to SGLang's native endpoint, token by token."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Answer:
    """One request and what came back.

    Attributes:
        prompt: token ids sent.
        output: token ids generated.
        arrived: when each event of the stream came, seconds on ``time.perf_counter``.
        finish: SGLang's reason, empty when the stream ended without one.
        error: what went wrong, empty when nothing did.
    """

    prompt: tuple[int, ...]
    output: list[int] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    finish: str = ""
    error: str = ""
    started: float = 0.0

    @property
    def longest_gap_s(self) -> float:
        """Longest silence between two events, 0 for fewer than two."""
        pairs = zip(self.arrived, self.arrived[1:], strict=False)
        return max((later - earlier for earlier, later in pairs), default=0.0)


async def generate(
    session: aiohttp.ClientSession, url: str, prompt: Sequence[int], *, tokens: int, within_s: float = 300.0
) -> Answer:
    """Greedy, exactly ``tokens`` long; errors end up in the answer."""
    answer = Answer(tuple(prompt), started=time.perf_counter())
    body = {
        "input_ids": list(prompt),
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
        "stream": True,
    }
    try:
        async with asyncio.timeout(within_s), session.post(f"{url}/generate", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    _note(answer, json.loads(line[6:]))
    except (aiohttp.ClientError, TimeoutError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


def _note(answer: Answer, event: dict[str, object]) -> None:
    answer.arrived.append(time.perf_counter())
    output, meta = event.get("output_ids"), event.get("meta_info")
    if not isinstance(meta, dict):
        return
    if isinstance(output, list):  # SGLang's own servers repeat all tokens so far, ours send only what is new
        repeated = len(answer.output) + len(output) > int(meta.get("completion_tokens", 0))
        answer.output = output if repeated else answer.output + output
    if meta.get("finish_reason"):
        answer.finish = str(meta["finish_reason"].get("type", ""))
