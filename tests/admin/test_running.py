"""Against real processes: what an operator asks is done once, whoever leads; what happened can be read in one trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid

import pytest

from schemas.keys import Keys
from tests.admin.running import TOKEN, running
from tests.telemetry.otlp_sink import otlp_sink
from tools.etcd.local import LocalEtcd

pytestmark = pytest.mark.timeout(150)
DRAIN = {"reason": "fan is loud"}


@pytest.fixture
def keys():
    return Keys(f"t{uuid.uuid4().hex[:12]}")


async def eepctl(endpoint, *words):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controlplane.cli", "--endpoint", endpoint, *words),
        env={**os.environ, "EEP_TOKEN": TOKEN},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def test_operators_use_any_replica_and_a_change_is_done_once(one_etcd, keys, tmp_path):
    async with running(tmp_path, one_etcd.endpoints[0], keys) as instance:
        leader = await instance.leader()
        follower = next(replica for replica in instance.replicas if replica is not leader)

        code, out, err = await eepctl(follower.url, "plan", "--drain", "3")
        assert code == 0, err
        assert "ranks 0-2" in out

        code, out, err = await eepctl(follower.url, "drain", "3", "--reason", "fan is loud", "--wait", "-o", "json")
        assert code == 0, err
        operation = json.loads(out)
        assert (operation["state"], operation["who"], operation["safe_to_terminate"]) == ("done", "alice", [3])
        await instance.settled(0, 1, 2)

        code, out, _ = await eepctl(follower.url, "status")
        assert code == 0
        assert "fan is loud" in out

        code, _, err = await eepctl(follower.url, "scale", "1", "--yes")
        assert code == 1  # 8 experts do not fit into 4 slots
        assert "headroom" in err

        code, out, _ = await eepctl(leader.url, "doctor")
        assert "coverage" in out

        code, _, err = await eepctl(follower.url, "ops", "rollback", operation["id"], "--yes", "--wait")
        assert code == 0, err
        await instance.settled(0, 1, 2, 3)


async def test_a_request_repeated_after_its_leader_was_killed_is_performed_once(one_etcd, keys, tmp_path):
    async with running(tmp_path, one_etcd.endpoints[0], keys) as instance:
        leader = await instance.leader()
        before = (await instance.get(leader, "/v1/cluster"))["epoch"]
        headers = {"Idempotency-Key": "drain-3-once"}
        async with instance.session.post(f"{leader.url}/v1/ranks/3:drain", json=DRAIN, headers=headers) as answer:
            assert answer.status == 202
            first = await answer.json()
        await leader.stop(signal.SIGKILL)
        successor = await instance.leader()
        assert successor is not leader
        async with instance.session.post(f"{successor.url}/v1/ranks/3:drain", json=DRAIN, headers=headers) as answer:
            assert answer.status == 202
            assert answer.headers["Idempotent-Replayed"] == "true"
            assert (await answer.json())["id"] == first["id"]
        done = await instance.until(
            lambda row: row.get("state") == "done", path=f"/v1/operations/{first['id']}", replica=successor
        )
        await instance.settled(0, 1, 2)
        operations = (await instance.get(successor, "/v1/operations"))["operations"]
        assert [row["id"] for row in operations] == [first["id"]]
        planned = (await instance.get(successor, "/v1/epochs"))["epochs"]
        assert len([row for row in planned if row["epoch"] > before and 3 not in row["members"]]) >= 1
        assert done["safe_to_terminate"] == [3]


async def test_while_etcd_is_away_the_api_shows_what_was_last_known_and_refuses_changes(keys, tmp_path):
    with LocalEtcd(members=1) as etcd:
        async with running(tmp_path, etcd.endpoints[0], keys, replicas=2) as instance:
            leader = await instance.leader()
            etcd.members[0].signal(signal.SIGSTOP)
            page = await instance.until(lambda page: page.get("etcd_connected") is False, replica=leader)
            assert (page["members"], page["epoch"] > 0) == ([0, 1, 2, 3], True)
            async with instance.session.get(f"{leader.url}/readyz") as answer:
                assert answer.status == 503
            async with asyncio.timeout(5):  # to a follower nothing happens meanwhile
                while any(["eep_etcd_connected 1.0" in await scraped(instance, it) for it in instance.replicas]):
                    await asyncio.sleep(0.1)
            async with instance.session.post(f"{leader.url}/v1/ranks/3:cordon", json=DRAIN) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "1"
                assert (await answer.json())["remedy"]
            code, out, _ = await eepctl(leader.url, "status")
            assert code == 0
            assert "etcd does not answer" in out
            etcd.members[0].signal(signal.SIGCONT)
            await instance.until(lambda page: page.get("etcd_connected") and page["leader"])


async def test_the_stream_tells_a_recovery_and_resumes_at_another_replica(one_etcd, keys, tmp_path):
    async with running(tmp_path, one_etcd.endpoints[0], keys) as instance:
        first, second = instance.replicas
        start = (await instance.get(first, "/v1/cluster"))["revision"]
        await instance.ranks[0].report(2)
        await instance.settled(0, 1, 3)
        told = [await streamed(instance, replica, after=start) for replica in (first, second)]
        assert told[0] == told[1]
        assert told[0].index("report") < told[0].index("epoch") < len(told[0]) - told[0][::-1].index("recovery")


async def scraped(instance, replica):
    async with instance.session.get(f"{replica.url}/metrics") as answer:
        return await answer.text()


async def streamed(instance, replica, *, after):
    """Names of the events until the record of a loss has an outcome; that of the formation may come first."""
    names, name = [], ""
    async with instance.session.get(f"{replica.url}/v1/events", headers={"Last-Event-ID": str(after)}) as answer:
        async for line in answer.content:
            field, _, value = line.decode().strip().partition(": ")
            if field == "event":
                name = value
            elif field == "data" and name != "open":
                names.append(name)
                record = json.loads(value)["record"] or {}
                if name == "recovery" and record.get("unplanned") and record["outcome"] == "done":
                    return names
    raise AssertionError(f"the stream ended after {names}")


def exporting(sink):
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


async def lost(instance, replica, *, ended=True):
    """The row of the unplanned recovery, once it has begun, or ended."""
    page = await instance.until(
        lambda page: any(row["unplanned"] and bool(row["outcome"]) >= ended for row in page["recoveries"]),
        path="/v1/recoveries",
        replica=replica,
    )
    return next(row for row in page["recoveries"] if row["unplanned"])


async def told(sink, trace, replica):
    """The spans of a trace, once ``replica`` has exported its ``eep.recovery``."""
    spans = await sink.wait_for(
        lambda spans: any(
            (one.name, one.trace_id, one.instance_id) == ("eep.recovery", trace, replica.name) for one in spans
        ),
        deadline_s=20,
    )
    return [span for span in spans if span.trace_id == trace]


async def test_one_recovery_is_one_trace_span_by_span(one_etcd, keys, tmp_path):
    async with (
        otlp_sink() as sink,
        running(tmp_path, one_etcd.endpoints[0], keys, ranks=3, **exporting(sink)) as instance,
    ):
        leader = await instance.leader()
        await instance.ranks[0].report(2)
        await instance.settled(0, 1)
        row = await lost(instance, leader)
        story = await told(sink, row["trace_id"], leader)
    assert row["outcome"] == "done"
    (root,) = [span for span in story if span.name == "eep.recovery"]
    assert (root.parent_id, root.service) == ("", "eep-controlplane")
    assert root.attributes["eep.recovery.id"] == row["id"]
    assert (root.attributes["eep.epoch.from"], root.attributes["eep.epoch.to"]) == (row["epoch_before"], row["epoch"])
    assert (root.attributes["eep.blame"], root.attributes["eep.evidence"]) == ("2", "dead")
    assert (root.attributes["eep.reporters"], root.attributes["eep.cut"]) == ("0", "abort")
    assert (root.attributes["eep.reason"], root.attributes["eep.outcome"]) == (row["reason"], "done")

    def below(name, parent=root):
        return sorted(
            (span for span in story if span.name == name and span.parent_id == parent.span_id),
            key=lambda span: span.attributes.get("eep.rank", 0),
        )

    for once in ("eep.detect", "eep.decide", "eep.plan", "eep.publish", "eep.commit"):
        assert below(once), f"{once} is missing below the root"
    assert below("eep.decide")[0].attributes["eep.reason"] == row["reason"]
    assert [span.attributes["eep.rank"] for span in below("eep.prepare")] == [0, 1]
    for prepare in below("eep.prepare"):
        (load,) = below("eep.load", prepare)
        assert load.attributes["eep.rank"] == prepare.attributes["eep.rank"]
        assert (load.attributes["eep.source.tier"], load.attributes["eep.bytes"]) == ("host_peer", 2000)
    assert [span.attributes["eep.rank"] for span in below("eep.first_token")] == [0, 1]
    phases = ("eep.detect", "eep.decide", "eep.plan", "eep.publish", "eep.first_token")
    starts = [below(name)[0].start_ns for name in phases]
    assert starts == sorted(starts)
    assert all(span.end_ns >= span.start_ns >= root.start_ns for span in story)
    assert all(span.parent_id in {one.span_id for one in story} for span in story if span is not root)


async def test_what_an_operator_asks_is_one_trace_from_the_request_to_the_flip(one_etcd, keys, tmp_path):
    async with (
        otlp_sink() as sink,
        running(tmp_path, one_etcd.endpoints[0], keys, replicas=1, **exporting(sink)) as instance,
    ):
        leader = await instance.leader()
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        async with instance.session.post(
            f"{leader.url}/v1/ranks/3:drain", json=DRAIN, headers={"traceparent": traceparent}
        ) as answer:
            operation = await answer.json()
        await instance.settled(0, 1, 2)
        await instance.until(lambda row: row.get("state") == "done", path=f"/v1/operations/{operation['id']}")
        story = await told(sink, operation["trace_id"], leader)
        story = await sink.wait_for(lambda spans: any(one.name == "eep.operation" for one in spans), deadline_s=20)
        story = [span for span in story if span.trace_id == operation["trace_id"]]
    assert operation["trace_id"] == "0af7651916cd43dd8448eb211c80319c"  # the caller's own trace
    (accept,) = [span for span in story if span.name == "eep.accept"]
    assert accept.parent_id == "b7ad6b7169203331"
    below = {span.name: span for span in story if span.parent_id == accept.span_id}
    assert below.keys() >= {"eep.recovery", "eep.operation"}
    assert below["eep.operation"].attributes["eep.outcome"].startswith("done")
    recovery = below["eep.recovery"]
    assert recovery.attributes["eep.operation.id"] == operation["id"]
    prepared = [s.attributes["eep.rank"] for s in story if s.name == "eep.prepare" and s.parent_id == recovery.span_id]
    assert sorted(prepared) == [0, 1, 2, 3]


async def test_a_successor_tells_on_in_the_same_trace_with_a_link_to_its_election(one_etcd, keys, tmp_path):
    async with (
        otlp_sink() as sink,
        running(tmp_path, one_etcd.endpoints[0], keys, ranks=3, **exporting(sink)) as instance,
    ):
        leader = await instance.leader()
        instance.ranks[1].works.clear()
        await instance.ranks[0].report(2)
        begun = (await lost(instance, leader, ended=False))["trace_id"]
        await sink.wait_for(lambda spans: any(one.trace_id == begun for one in spans), deadline_s=20)
        await leader.stop(signal.SIGKILL)
        successor = await instance.leader()
        instance.ranks[1].works.set()
        row = await lost(instance, successor)
        story = await told(sink, row["trace_id"], successor)
        elections = [span for span in sink.spans if span.name == "eep.election"]
    (root,) = [span for span in story if span.name == "eep.recovery" and span.instance_id == successor.name]
    (election,) = [span for span in elections if span.instance_id == successor.name]
    assert root.links == ((election.trace_id, election.span_id),)
    assert root.parent_id != ""
    assert root.attributes["eep.outcome"] == "done"
    assert len(row["fences"]) == 2
    assert row["trace_id"] == begun
    assert {span.instance_id for span in story} == {leader.name, successor.name}
