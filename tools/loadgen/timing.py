"""What the arrivals say: gaps, first tokens, throughput over time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.loadgen.answers import Answer


@dataclass(frozen=True)
class Timing:
    """Over a set of answers; ms unless said otherwise."""

    answers: int
    tokens: int
    seconds: float
    """From the first request sent to the last token."""
    tokens_per_s: float
    median_step: float
    p99_step: float
    longest_gap: float
    """The longest wait of any client between two tokens."""
    median_first_token: float


def timing(answers: Sequence[Answer]) -> Timing:
    """Summarise ``answers``; zeros where there is nothing."""
    gaps = np.array([gap for answer in answers for gap in np.diff(answer.arrived_ns)], dtype=np.float64) / 1e6
    first = [answer.first_token_ms for answer in answers if answer.arrived_ns]
    tokens = sum(len(answer.tokens) for answer in answers)
    started = min((answer.sent_ns for answer in answers), default=0)
    ended = max((answer.arrived_ns[-1] for answer in answers if answer.arrived_ns), default=started)
    seconds = (ended - started) / 1e9
    return Timing(
        answers=len(answers),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        median_step=float(np.median(gaps)) if gaps.size else 0.0,
        p99_step=float(np.percentile(gaps, 99)) if gaps.size else 0.0,
        longest_gap=float(gaps.max()) if gaps.size else 0.0,
        median_first_token=float(np.median(first)) if first else 0.0,
    )


def throughput(
    answers: Sequence[Answer], *, window_s: float, since_ns: int, until_ns: int
) -> list[tuple[float, float]]:
    """Tokens per second in each window of ``window_s`` between two moments.

    Returns:
        (seconds from ``since_ns`` to the window's middle, tokens per second), in order; a last part window is left out.
    """
    width = int(window_s * 1e9)
    edges = np.arange(since_ns, until_ns + 1, width)
    if len(edges) < 2:
        return []
    arrived = np.array([moment for answer in answers for moment in answer.arrived_ns], dtype=np.int64)
    counts, _ = np.histogram(arrived, bins=edges)
    return [((index + 0.5) * window_s, float(count) / window_s) for index, count in enumerate(counts)]


def longest_gap_around(answers: Sequence[Answer], moment_ns: int) -> float:
    """The longest gap that contains ``moment_ns`` or begins within a second after it, ms: a fault's cost to clients."""
    return max(
        (
            (b - a) / 1e6
            for answer in answers
            for a, b in pairwise(answer.arrived_ns)
            if a <= moment_ns < b or moment_ns <= a <= moment_ns + 1_000_000_000
        ),
        default=0.0,
    )
