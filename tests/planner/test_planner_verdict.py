"""What the benchmark says of its own figures: reached, proven to be out of reach, or neither."""

import json
from concurrent.futures import Future
from pathlib import Path

import pytest

from tools.benchmarks.placement import verdict
from tools.benchmarks.placement.suite import Patience


@pytest.fixture
def result():
    file = Path(verdict.__file__).parents[1] / "results/planner.json"
    return json.loads(file.read_text(encoding="utf-8"))


def budgeted(result, key):
    (line,) = [line for line in verdict.judge(result) if "1 % of the slots, " + key in line.target]
    return line


def test_the_verdict_in_the_data_is_what_the_data_give(result):
    assert result["verdict"] == json.loads(json.dumps([line.as_dict() for line in verdict.judge(result)]))


@pytest.mark.parametrize("key", ["mean", "worst"])
def test_a_repair_is_reached_or_proven_out_of_reach_or_neither(result, key):
    row, *_ = result["repair"]
    result["repair"] = [row]
    row.pop("bound_with_budget", None)
    row["lp_bound"][key] = row["whole_bound"][key] = 1.0

    row["with_budget"][key] = 1.05
    assert budgeted(result, key).met
    assert not budgeted(result, key).infeasible

    row["with_budget"][key] = 1.0501
    assert not budgeted(result, key).met
    assert len(budgeted(result, key).missed) == 1

    row["bound_with_budget"] = {"mean": 1.05, "worst": 1.05}
    assert len(budgeted(result, key).missed) == 1

    row["bound_with_budget"][key] = 1.0501
    assert budgeted(result, key).met
    assert len(budgeted(result, key).infeasible) == 1


def test_the_benchmark_waits_for_its_parts_only_so_long():
    ready: Future[int] = Future()
    ready.set_result(7)
    patience = Patience(0.05)
    assert patience.result(ready) == 7
    with pytest.raises(TimeoutError, match="over"):
        patience.result(Future())
    assert patience.result(ready) == 7
