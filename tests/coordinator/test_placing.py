"""A rebalance follows the measured load; what it plans is reached without writing a slot in use."""

import numpy as np

from controlplane.coordinator.placing import LoadAwarePlanner
from controlplane.coordinator.predicting import balance
from controlplane.coordinator.state import Kind
from schemas.records import ExpertLoad
from tests.coordinator.instance import Instance


def test_a_rebalance_evens_out_a_skewed_load_and_keeps_coverage():
    instance = Instance(experts=8, slots=4, layers=2)
    instance.planner = LoadAwarePlanner()
    instance.form(4)
    tokens = np.ones((2, 8), dtype="<f2")
    tokens[:, 0] = 40
    load = ExpertLoad(rank=0, layers=2, experts=8, tokens=tokens.tobytes())
    instance.put(Kind.LOAD, 0, load)
    before = balance(instance.state, instance.live, instance.members)
    name = instance.ask("rebalance")
    instance.work()
    assert instance.operation(name).state == "done"
    assert instance.live.missing(instance.members) == []
    assert balance(instance.state, instance.live, instance.members) < before
