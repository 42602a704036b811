"""What this rank's router chose lately, told to the planner now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.records import ExpertLoad

if TYPE_CHECKING:
    from schemas.messages import EngineStatus, Hello

EVERY_S = 15.0
"""Load drifts over minutes; etcd is no place for anything faster."""

_LARGEST = 60_000.0
"""float16 ends at 65,504."""


def expert_load(hello: Hello, status: EngineStatus) -> ExpertLoad | None:
    """The record for a status; None when the engine has routed nothing, or counts experts that it did not announce."""
    counts = np.frombuffer(status.tokens_per_expert, dtype="<f4")
    if counts.size != hello.layers * hello.experts or not counts.any():
        return None
    scaled = counts * min(1.0, _LARGEST / float(counts.max()))
    return ExpertLoad(
        rank=hello.rank, layers=hello.layers, experts=hello.experts, tokens=scaled.astype("<f2").tobytes()
    )
