"""How tokens are chosen, and how that is carried on by another rank."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from schemas.vocabulary import IDS_ONLY


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What SGLang's ``sampling_params`` take, in the same names; the whole state that choosing tokens depends on.

    Stop strings are not here: the gateway looks for them itself, since one may straddle the change of ranks.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[str, float] = {}
    sampling_seed: int | None = None

    @property
    def greedy(self) -> bool:
        """The most likely token always wins: nothing is drawn."""
        return self.temperature < 1e-6 or self.top_k == 1

    def inexact_after(self, *, seeded_ranks: bool) -> str:
        """Why another rank would not choose the very same tokens after a hand-over; empty when it would.

        Args:
            seeded_ranks: ranks run with ``--enable-deterministic-inference``. Then SGLang draws by a hash of (seed,
                position in the sequence) (``layers/sampler.py: multinomial_with_seed``), so the draw at a position is
                the same whichever rank makes it; without the flag it ignores ``sampling_seed``.
        """
        if self.repetition_penalty != 1.0:
            return "repetition_penalty: the next rank counts the tokens before the hand-over as prompt"
        if self.presence_penalty:
            return "presence_penalty: the next rank counts the tokens before the hand-over as prompt"
        if self.greedy:
            return ""
        if not seeded_ranks:
            return "temperature: ranks draw from a generator of their own (no --enable-deterministic-inference)"
        return "" if self.sampling_seed is not None else "sampling_seed: not given"

    def body(self, generated: list[int]) -> dict[str, Any]:
        """``sampling_params`` for a rank that continues after ``generated`` tokens.

        A frequency penalty is linear in the count, so what was generated before becomes an equal logit bias; a presence
        penalty does too, except that SGLang counts a token again when it comes back.
        """
        body: dict[str, Any] = {
            name: value for name, value in msgspec.to_builtins(self).items() if value not in (None, (), {}, [])
        }
        body["max_new_tokens"] = self.max_new_tokens - len(generated)
        body["min_new_tokens"] = max(0, self.min_new_tokens - len(generated))
        body["custom_params"] = {IDS_ONLY: True}
        bias = self._penalties_as_bias(generated)
        if bias:
            body["logit_bias"] = bias
        return body

    def _penalties_as_bias(self, generated: list[int]) -> dict[str, float]:
        bias = dict(self.logit_bias)
        if self.frequency_penalty or self.presence_penalty:
            for token, count in Counter(generated).items():
                penalty = self.frequency_penalty * count + self.presence_penalty
                bias[str(token)] = bias.get(str(token), 0.0) - penalty
        return bias
