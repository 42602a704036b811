from __future__ import annotations

import json

from tools.mainjob.chaos import Results, arguments, line, plan_for, table
from tools.mainjob.instance import SHIPPED_MODEL, Plan, slots_per_rank
from tools.mainjob.scenarios import SCENARIOS, Needs, grouped
from worker.engine.checkpoint import Checkpoint


def run(scenario, seed, *, verdict="pass", **figures):
    return {
        "scenario": scenario, "seed": seed, "verdict": verdict, "problem": "", "answers": 10, "failed": 0,
        "resumed": 1, "tokens": 100, "tokens_wrong": 0, "longest_wait_ms": 80.0, "faults": [], "seconds": 1.0,
    } | figures  # fmt: skip


def test_scenarios_with_equal_needs_share_one_instance():
    groups = grouped(SCENARIOS)
    assert sorted(name for mine in groups.values() for name in (one.name for one in mine)) == sorted(SCENARIOS)
    assert len(groups[Needs()]) >= 15
    assert [one.name for one in groups[Needs(etcd=3)]] == ["kill-etcd-leader"]
    assert all(one.story for one in SCENARIOS.values())


def test_two_of_the_suites_ranks_can_hold_every_expert():
    plan = plan_for(arguments().parse_args([]), Needs())
    assert 2 * slots_per_rank(plan) >= Checkpoint(SHIPPED_MODEL).n_experts
    assert plan.policy["survivability"] == "none"
    assert slots_per_rank(Plan(spare=0.5)) * 3 >= Checkpoint(SHIPPED_MODEL).n_experts


def test_a_table_line_adds_up_the_seeds_of_a_scenario():
    runs = [run("drain", 0), run("drain", 1, verdict="fail", failed=2, longest_wait_ms=3000.0), run("zombie", 0)]
    first, second = table(runs)
    assert (first["scenario"], first["seeds"], first["passed"]) == ("drain", [0, 1], 1)
    assert (first["answers"], first["failed"], first["tokens"], first["longest_wait_ms"]) == (20, 2, 200, 3000.0)
    assert (second["scenario"], second["passed"]) == ("zombie", 1)


def test_runs_are_kept_until_they_are_repeated(tmp_path, capsys):
    path = tmp_path / "chaos.json"
    first = Results("tools/chaos", path)
    for result in (run("zombie", 0), run("kill-one", 1, verdict="fail")):
        first.add(result)
    assert first.passed == 1
    again = Results("tools/chaos kill-one", path, earlier=json.loads(path.read_text())["runs"])
    again.add(run("kill-one", 1))
    told = json.loads(path.read_text())
    assert [(one["scenario"], one["seed"], one["verdict"]) for one in told["runs"]] == [
        ("kill-one", 1, "pass"),
        ("zombie", 0, "pass"),
    ]
    assert told["date"]
    assert told["versions"]["sglang"]
    assert capsys.readouterr().out.count("kill-one") == 2


def test_a_run_without_a_cluster_is_told_with_its_problem():
    failed = {"scenario": "drain", "seed": 3, "verdict": "fail", "problem": "no cluster to run it on: no epoch"}
    assert line(failed).splitlines() == [
        "fail  drain                        seed 3   ",
        "      problem: no cluster to run it on: no epoch",
    ]
    assert table([failed])[0]["passed"] == 0
