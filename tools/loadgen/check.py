"""Is every token right? Teacher-forced against transformers, or equal to a run without faults."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tools.loadgen.answers import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tools.loadgen.answers import Answer


@dataclass(frozen=True)
class Verdict:
    """What a check found; ``good`` is the only thing that may pass."""

    answers: int
    tokens: int
    failed: int
    """Answers that did not complete."""
    short: int
    """Complete answers with fewer or more tokens than asked for."""
    wrong: int
    """Tokens that are not the reference's."""
    worst_gap: float = 0.0
    """Largest distance of a token's logit from the top one (teacher-forced only)."""
    first_wrong: str = ""

    @property
    def good(self) -> bool:
        """Nothing failed, nothing short, nothing wrong, and something was checked."""
        return self.tokens > 0 and not (self.failed or self.short or self.wrong)


def teacher_forced(answers: Sequence[Answer], model: Path, *, tolerance: float = 1e-4) -> Verdict:
    """Judge greedy answers by transformers on the same weights in float32.

    Every token must be the argmax given the prompt and the answer before it, or within ``tolerance`` of the top logit
    (two sums in another order may tie). Answers that failed still have their tokens judged.
    """
    forward = _reference(model)
    wrong, worst, first = 0, 0.0, ""
    for answer in answers:
        if not answer.tokens:
            continue
        for position, gap in enumerate(forward.gaps(answer.ask.prompt, answer.tokens)):
            worst = max(worst, gap)
            if gap > tolerance:
                wrong += 1
                first = first or f"request {answer.ask.id} token {position}: {gap:.2g} below the top logit"
    return _verdict(answers, wrong=wrong, worst=worst, first=first)


def compare(answers: Sequence[Answer], reference: Mapping[int, Sequence[int]]) -> Verdict:
    """Judge answers by the tokens of a run without faults, by request id.

    Raises:
        KeyError: a request has no reference.
    """
    wrong, first = 0, ""
    for answer in answers:
        for position, (got, due) in enumerate(zip(answer.tokens, reference[answer.ask.id], strict=False)):
            if got != due:
                wrong += 1
                first = first or f"request {answer.ask.id} token {position}: {got}, the reference has {due}"
    return _verdict(answers, wrong=wrong, worst=0.0, first=first)


def _verdict(answers: Sequence[Answer], *, wrong: int, worst: float, first: str) -> Verdict:
    complete = [answer for answer in answers if answer.outcome is Outcome.COMPLETE]
    short = [answer for answer in complete if not _whole(answer)]
    return Verdict(
        answers=len(answers),
        tokens=sum(len(answer.tokens) for answer in answers),
        failed=len(answers) - len(complete),
        short=len(short),
        wrong=wrong,
        worst_gap=worst,
        first_wrong=first,
    )


def _whole(answer: Answer) -> bool:
    asked = answer.ask.max_new_tokens
    return len(answer.tokens) == asked if answer.ask.ignore_eos else 0 < len(answer.tokens) <= asked


@lru_cache(maxsize=1)
def _reference(model: Path) -> _Reference:
    """Kept: loading the model takes longer than judging some hundred answers."""
    return _Reference(model)


class _Reference:
    """The model in transformers, float32."""

    def __init__(self, folder: Path) -> None:
        from tools.models.torch_modules import AutoModelForCausalLM, torch  # noqa: PLC0415  # seconds to import

        self._torch: Any = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def gaps(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Top logit − the token's logit, for each token."""
        torch = self._torch
        row = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logits = self._model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        gaps: list[float] = (logits.max(dim=1).values - chosen).tolist()
        return gaps
