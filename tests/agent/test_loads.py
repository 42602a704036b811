from __future__ import annotations

import numpy as np

from schemas.messages import EngineStatus, Hello
from worker.agent.loads import expert_load

HELLO = Hello(
    rank=3,
    incarnation=1,
    pid=1,
    link_address="",
    layers=2,
    experts=3,
    slots=2,
    expert_bytes=1,
    model="",
    checkpoint="",
)


def status(counts):
    data = np.asarray(counts, dtype="<f4").tobytes()
    return EngineStatus(epoch=1, prepared=1, step=1, running=0, waiting=0, draining=False, tokens_per_expert=data)


def test_counts_keep_their_proportions_whatever_their_size():
    load = expert_load(HELLO, status([[1e6, 5e5, 0], [1, 2, 3]]))
    tokens = np.frombuffer(load.tokens, dtype="<f2").reshape(2, 3)
    assert (load.rank, load.layers, load.experts) == (3, 2, 3)
    assert np.isfinite(tokens).all()
    assert abs(float(tokens[0, 0]) / float(tokens[0, 1]) - 2) < 0.01


def test_nothing_routed_is_nothing_to_tell():
    assert expert_load(HELLO, status(np.zeros((2, 3)))) is None
    assert expert_load(HELLO, status([1.0])) is None
