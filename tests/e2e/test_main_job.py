"""The product as a person meets it: one command, real etcd, real SGLang ranks, a SIGKILL, and nobody noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import psutil
import pytest

pytestmark = pytest.mark.engine


def marked(mark):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EEP_E2E") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def told_span_by_span(fault, *, survivors):
    """The trace of the loss through a collector, as the leader, the agents of the survivors and nobody else told it."""
    spans = fault["spans"]
    (root,) = [span for span in spans if span["name"] == "eep.recovery"]
    assert (root["parent_id"], root["service"]) == ("", "eep-controlplane")
    about = root["attributes"]
    before, after, _ = fault["epochs"]
    assert (about["eep.epoch.from"], about["eep.epoch.to"], about["eep.cut"]) == (str(before), str(after), "abort")
    assert (about["eep.blame"], about["eep.evidence"]) == (str(fault["rank"]), "dead")
    assert about["eep.outcome"] == "done"
    assert f"rank {fault['rank']} is gone" in about["eep.reason"]

    def below(name, service):
        return [
            span
            for span in spans
            if (span["name"], span["service"], span["parent_id"]) == (name, service, root["span_id"])
        ]

    def ranks(name, service):
        return sorted(int(span["attributes"]["eep.rank"]) for span in below(name, service))

    for phase in ("eep.detect", "eep.decide", "eep.plan", "eep.publish", "eep.commit"):
        assert below(phase, "eep-controlplane"), f"{phase} is missing"
    assert below("eep.decide", "eep-controlplane")[0]["attributes"]["eep.reason"] == about["eep.reason"]
    assert ranks("eep.first_token", "eep-controlplane") == sorted(survivors)
    for name in ("eep.prepare", "eep.commit"):
        assert ranks(name, "eep-worker") == sorted(survivors), name
    loaded = {span["attributes"]["eep.source.tier"] for span in spans if span["name"] == "eep.load"}
    assert loaded == set(fault["loaded_bytes"])
    order = ("eep.detect", "eep.decide", "eep.plan", "eep.publish", "eep.first_token")
    starts = [below(phase, "eep-controlplane")[0]["start_ns"] for phase in order]
    assert starts == sorted(starts)
    assert all(span["end_ns"] >= span["start_ns"] for span in spans)
    assert {span["parent_id"] for span in spans} - {""} <= {span["span_id"] for span in spans}


@pytest.mark.timeout(900)
def test_a_killed_rank_costs_no_request_and_no_token(tmp_path):
    result, mark = tmp_path / "out.json", uuid.uuid4().hex
    command = [
        sys.executable,
        "-m",
        "tools.mainjob.main",
        "--once",
        "--ranks",
        "3",
        "--seed",
        "7",
        "--json",
        str(result),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=880, env={**os.environ, "EEP_E2E": mark}, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    told = json.loads(result.read_text())
    assert told["verdict"] == "pass"
    assert told["requests"]["failed"] == 0
    assert told["tokens_wrong"] == 0
    assert told["tokens"] > 1000
    (fault,) = told["faults"]
    assert fault["blamed"] == [fault["rank"]]
    assert fault["epochs"] == sorted(fault["epochs"])
    assert len(fault["epochs"]) == 3, "before, without the rank, with it again"
    assert fault["rejoin_ms"] > 0
    assert fault["trace_id"] in run.stderr
    assert told["collector"].startswith("rotel ")
    told_span_by_span(fault, survivors={0, 1, 2} - {fault["rank"]})
    assert marked(mark) == [], "every process it started is gone"


def test_options_that_cannot_work_are_told_with_the_remedy():
    for options, told in (
        (["--ranks", "1"], "a lone rank has nobody to take over for it"),
        (["--model", "/nowhere"], "no config.json there"),
        (["--chaos", "earthquake"], "invalid choice"),
    ):
        command = [sys.executable, "-m", "tools.mainjob.main", *options]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 2
        assert told in run.stderr
