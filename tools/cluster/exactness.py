"""Is every generated token one that the reference would choose? transformers on the same weights, teacher-forced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tools.cluster.traffic import Answer


class Reference:
    """The whole model in one process, without SGLang and without us."""

    def __init__(self, model: Path, *, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - heavy

        import tools.models.torch_modules  # noqa: F401, PLC0415 - lets transformers import where torchvision cannot load

        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def wrong(self, answer: Answer, *, tolerance: float = 1e-4) -> list[int]:
        """Positions of ``answer.output`` whose token's logit is more than ``tolerance`` below the best one.

        The reference is fed the very tokens that were generated, so that one near-tie is not counted for ever after.
        """
        ids = torch.tensor([[*answer.prompt, *answer.output]])
        with torch.inference_mode():
            logits = self._model(ids[:, :-1]).logits[0, len(answer.prompt) - 1 :].float()
        chosen = logits.gather(1, torch.tensor(answer.output).view(-1, 1)).view(-1)
        positions: list[int] = torch.nonzero(logits.max(-1).values - chosen > tolerance).view(-1).tolist()
        return positions

    def count_wrong(self, answers: Iterable[Answer], *, tolerance: float = 1e-4) -> int:
        """Wrong tokens of all answers."""
        return sum(len(self.wrong(answer, tolerance=tolerance)) for answer in answers)
