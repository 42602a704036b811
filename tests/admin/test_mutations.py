"""What changes the instance becomes one operation, whatever happens on the way."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from schemas.operations import OperationKind, OperationState, Prediction
from schemas.records import LeaderRecord
from tests.admin.instance import OPERATOR, as_bearer

DRAIN = "/v1/ranks/2:drain"
WHY = {"reason": "fan is loud"}


async def stored(instance):
    return await instance.archive.operations()


async def refused(answer, status, field=None):
    assert answer.status == status, await answer.text()
    assert answer.content_type == "application/problem+json"
    problem = await answer.json()
    assert problem["status"] == status
    assert field is None or problem["field"] == field
    return problem


@pytest.mark.parametrize(
    ("path", "body", "kind", "expected"),
    [
        (DRAIN, {**WHY, "deadline_s": 30}, OperationKind.DRAIN, {"ranks": (2,), "deadline_s": 30.0}),
        ("/v1/ranks/2:cordon", WHY, OperationKind.CORDON, {"ranks": (2,)}),
        ("/v1/ranks/2:uncordon", None, OperationKind.UNCORDON, {"ranks": (2,), "reason": ""}),
        ("/v1/ranks/2:rejoin", {}, OperationKind.REJOIN, {"ranks": (2,)}),
        ("/v1/ranks/2:replace", {**WHY, "by": 3}, OperationKind.REPLACE, {"parameters": {"by": (3,)}}),
        ("/v1/hosts/host-1:drain", WHY, OperationKind.DRAIN, {"host": "host-1", "ranks": ()}),
        ("/v1/scale", {"target": 2.0, "ranks": [1, 0, 1]}, OperationKind.SCALE, {"ranks": (0, 1)}),
        ("/v1/rebalance", None, OperationKind.REBALANCE, {"parameters": {}}),
        ("/v1/rebalance", {"max_bytes": 5}, OperationKind.REBALANCE, {"parameters": {"max_bytes": 5}}),
        ("/v1/loans", {**WHY, "action": "lend", "ranks": [1], "to": "batch"}, OperationKind.LEND, {"ranks": (1,)}),
        ("/v1/loans", {"action": "reclaim", "ranks": [1]}, OperationKind.RECLAIM, {"ranks": (1,)}),
        (
            "/v1/notices",
            {**WHY, "scope": "ranks", "ranks": [1], "deadline_s": 9},
            OperationKind.NOTICE,
            {"ranks": (1,)},
        ),
        ("/v1/notices", {**WHY, "scope": "host", "host": "host-0", "deadline_s": 9}, OperationKind.NOTICE, {}),
        ("/v1/pause", {**WHY, "losses": True}, OperationKind.PAUSE, {"parameters": {"losses": True}}),
        ("/v1/resume", None, OperationKind.RESUME, {}),
    ],
)
async def test_each_request_becomes_the_operation_it_names(api, instance, path, body, *, kind, expected):
    answer = await api.post(path, json=body) if body is not None else await api.post(path)
    assert answer.status == 202, await answer.text()
    (operation,) = await stored(instance)
    assert (operation.kind, operation.who, operation.state) == (kind, "alice", OperationState.PENDING)
    assert {name: getattr(operation, name) for name in expected} == expected
    assert answer.headers["Location"] == f"/v1/operations/{operation.id}"
    assert (await (await api.get(answer.headers["Location"])).json())["id"] == operation.id
    assert operation.created_unix_ns > 0


async def test_a_dry_run_predicts_and_writes_nothing(api, instance):
    answer = await api.post(f"{DRAIN}?dry_run=1", json=WHY)
    assert answer.status == 200
    assert (await answer.json())["pause_ms"] == 12.5
    assert await stored(instance) == []
    assert [operation.kind for operation in instance.predicted] == [OperationKind.DRAIN]


async def test_a_dry_run_shows_a_refusal_instead_of_refusing(api, instance):
    instance.prediction = msgspec.structs.replace(instance.prediction, allowed=False, refusal="2 experts have no copy")
    answer = await api.post(f"{DRAIN}?dry_run=true", json=WHY)
    assert (answer.status, (await answer.json())["refusal"]) == (200, "2 experts have no copy")


async def test_a_change_that_breaks_coverage_is_refused_with_the_headroom(api, instance):
    instance.prediction = Prediction(
        epoch=7,
        members=(0,),
        allowed=False,
        refusal="2 ranks hold 6 slots, 8 are needed",
        missing=((0, 4),),
        headroom_before=1,
        headroom_after=0,
    )
    problem = await refused(await api.post(DRAIN, json=WHY), 409)
    assert problem["detail"] == "2 ranks hold 6 slots, 8 are needed"
    assert (problem["headroom_before"], problem["headroom_after"], problem["missing_experts"]) == (
        1,
        0,
        [{"layer": 0, "expert": 4}],
    )
    assert problem["remedy"]
    assert await stored(instance) == []


@pytest.mark.parametrize(("path", "body"), [("/v1/ranks/2:cordon", WHY), ("/v1/pause", WHY)])
async def test_what_moves_no_rank_is_not_refused_for_coverage(api, instance, path, body):
    instance.prediction = msgspec.structs.replace(instance.prediction, allowed=False)
    assert (await api.post(path, json=body)).status == 202


KEY = {"Idempotency-Key": "drain-2-once"}


class TestIdempotency:
    async def test_a_repeated_request_is_performed_once(self, api, instance):
        first = await api.post(DRAIN, json=WHY, headers=KEY)
        again = await api.post(DRAIN, json=WHY, headers=KEY)
        assert (first.status, again.status) == (202, 202)
        assert first.headers["Location"] == again.headers["Location"]
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"
        assert len(await stored(instance)) == 1

    async def test_twenty_at_the_same_time_are_one(self, api, instance):
        answers = await asyncio.gather(*(api.post(DRAIN, json=WHY, headers=KEY) for _ in range(20)))
        assert {answer.status for answer in answers} == {202}
        assert len({answer.headers["Location"] for answer in answers}) == 1
        assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
        assert len(await stored(instance)) == 1

    async def test_a_successor_finds_what_the_dead_leader_wrote(self, api, instance, tmp_path):
        first = await api.post(DRAIN, json=WHY, headers=KEY)
        async with instance.client(tmp_path) as successor:
            again = await successor.post(DRAIN, json=WHY, headers=KEY)
        assert again.headers["Location"] == first.headers["Location"]
        assert len(await stored(instance)) == 1

    async def test_it_is_replayed_even_when_the_epoch_has_moved_on_since(self, api, instance):
        headers = {**KEY, "If-Match": '"7"'}
        await api.post(DRAIN, json=WHY, headers=headers)
        record = instance.current.epoch
        moved = msgspec.structs.replace(record.committed, epoch=8)
        instance.change(epoch=msgspec.structs.replace(record, committed=moved))
        assert (await api.post(DRAIN, json=WHY, headers=headers)).status == 202

    @pytest.mark.parametrize(
        ("path", "body"), [(DRAIN, {"reason": "other"}), ("/v1/ranks/1:drain", WHY), ("/v1/ranks/2:cordon", WHY)]
    )
    async def test_the_same_key_for_another_request_is_a_conflict(self, api, instance, path, body):
        await api.post(DRAIN, json=WHY, headers=KEY)
        problem = await refused(await api.post(path, json=body, headers=KEY), 409, "header.Idempotency-Key")
        assert problem["value"] == "drain-2-once"
        assert len(await stored(instance)) == 1

    async def test_without_a_key_each_request_is_new(self, api, instance):
        for _ in range(2):
            await api.post(DRAIN, json=WHY)
        assert len(await stored(instance)) == 2

    @pytest.mark.parametrize("key", ["", "two words", "x" * 256, "ü"])
    async def test_a_key_that_is_none_is_refused(self, api, key):
        await refused(await api.post(DRAIN, json=WHY, headers={"Idempotency-Key": key}), 400, "header.Idempotency-Key")


class TestIfMatch:
    async def test_the_committed_epoch_passes(self, api):
        tag = (await api.get("/v1/cluster")).headers["ETag"]
        assert (await api.post(DRAIN, json=WHY, headers={"If-Match": tag})).status == 202

    async def test_another_epoch_is_refused_with_the_present_one(self, api, instance):
        problem = await refused(await api.post(DRAIN, json=WHY, headers={"If-Match": '"6"'}), 412, "header.If-Match")
        assert problem["epoch"] == 7
        assert await stored(instance) == []

    async def test_an_epoch_that_moved_since_it_was_read_is_refused_by_etcd(self, api, instance):
        await instance.store(instance.keys.epoch, instance.current.epoch)  # this replica has not seen it yet
        await refused(await api.post(DRAIN, json=WHY, headers={"If-Match": '"7"'}), 412)
        assert await stored(instance) == []

    async def test_a_tag_that_is_none_is_refused(self, api):
        await refused(await api.post(DRAIN, json=WHY, headers={"If-Match": "seven"}), 400, "header.If-Match")


class TestBadRequests:
    @pytest.mark.parametrize(
        ("path", "body", "field"),
        [
            (DRAIN, {}, "body"),
            (DRAIN, {"reason": ""}, "body.reason"),
            (DRAIN, {"reason": "  "}, "body.reason"),
            (DRAIN, {**WHY, "deadline_s": -1}, "body.deadline_s"),
            (DRAIN, {**WHY, "deadlines": 1}, "body"),
            (DRAIN, [], "body"),
            ("/v1/scale", {"target": 0}, "body.target"),
            ("/v1/scale", {"target": "4"}, "body.target"),
            ("/v1/scale", {"target": 1, "ranks": [0, 128]}, "body.ranks[1]"),
            ("/v1/loans", {"action": "give", "ranks": [1]}, "body.action"),
            ("/v1/notices", {**WHY, "scope": "host", "host": "host-0"}, "body"),
            ("/v1/ranks/x:drain", WHY, "path.rank"),
        ],
    )
    async def test_the_wrong_field_is_named(self, api, instance, path, body, field):
        problem = await refused(await api.post(path, json=body), 400, field)
        assert problem["remedy"]
        assert await stored(instance) == []

    async def test_the_wrong_value_is_shown(self, api):
        problem = await refused(await api.post("/v1/scale", json={"target": 1, "ranks": [0, 128]}), 400)
        assert problem["value"] == 128

    @pytest.mark.parametrize(
        ("path", "body", "field"),
        [
            ("/v1/ranks/9:drain", WHY, "rank"),
            ("/v1/hosts/nowhere:drain", WHY, "host"),
            ("/v1/loans", {"action": "reclaim", "ranks": [1, 77]}, "rank"),
        ],
    )
    async def test_what_is_not_there_is_named(self, api, path, body, field):
        await refused(await api.post(path, json=body), 404, field)

    async def test_what_is_no_json_is_refused(self, api):
        await refused(await api.post(DRAIN, data=b"{", headers={"Content-Type": "application/json"}), 400, "body")
        await refused(await api.post(DRAIN, data=b"\xff", headers={"Content-Type": "application/json"}), 400, "body")
        await refused(await api.post(DRAIN, data=b"reason=x"), 415, "header.Content-Type")

    async def test_a_huge_body_is_refused(self, api):
        await refused(await api.post(DRAIN, json={"reason": "x" * 100_000}), 413)

    async def test_a_flag_is_on_or_off(self, api):
        await refused(await api.post(f"{DRAIN}?dry_run=maybe", json=WHY), 400, "query.dry_run")

    async def test_an_unknown_path_and_method_are_problems_too(self, api):
        await refused(await api.get("/v1/nothing"), 404)
        answer = await api.put("/v1/scale", json={})
        await refused(answer, 405)
        assert answer.headers["Allow"] == "POST"


class TestFollower:
    async def test_a_follower_sends_mutations_to_the_leader_and_answers_reads(self, api, instance):
        leader = LeaderRecord(replica="cp-2", admin_url="http://10.0.0.2:8410/")
        instance.change(leading=False, leader=leader)
        answer = await api.post(f"{DRAIN}?dry_run=1", json=WHY, allow_redirects=False)
        assert answer.status == 307
        assert answer.headers["Location"] == "http://10.0.0.2:8410/v1/ranks/2:drain?dry_run=1"
        assert (await api.get("/v1/cluster")).status == 200

    async def test_a_redirected_request_arrives_whole(self, api, instance, tmp_path):
        instance.change(leading=False, leader=LeaderRecord(replica="cp-2", admin_url=str(api.make_url(""))))

        async def lead_after(seconds):
            await asyncio.sleep(seconds)
            instance.change(leading=True)

        leading = asyncio.create_task(lead_after(0.05))
        answer = await api.post(DRAIN, json=WHY, max_redirects=10_000)
        await leading
        assert answer.status == 202
        assert [operation.reason for operation in await stored(instance)] == ["fan is loud"]

    async def test_while_nobody_leads_the_caller_is_asked_to_repeat(self, api, instance):
        itself = LeaderRecord(replica="cp-1", admin_url=str(api.make_url("")))
        for leader in (None, itself):  # the key of one that does not lead any more stands until its lease is over
            instance.change(leading=False, leader=leader)
            answer = await api.post(DRAIN, json=WHY)
            await refused(answer, 503)
            assert answer.headers["Retry-After"] == "1"


class TestCancelAndRollback:
    async def made(self, api, path=DRAIN, body=WHY):
        return (await (await api.post(path, json=body)).json())["id"]

    async def end(self, instance, identity, state=OperationState.DONE, **fields):
        operation, _ = await instance.archive.operation(identity)
        ended = msgspec.structs.replace(operation, state=state, finished_unix_ns=1, **fields)
        await instance.store(instance.keys.operation(identity), ended)

    async def test_a_running_operation_is_asked_to_stop(self, api, instance):
        identity = await self.made(api)
        for _ in range(2):
            answer = await api.delete(f"/v1/operations/{identity}")
            assert (answer.status, (await answer.json())["cancel_requested"]) == (202, "alice")
        assert (await stored(instance))[0].cancel_requested == "alice"

    async def test_an_ended_one_cannot_be_cancelled(self, api, instance):
        identity = await self.made(api)
        await self.end(instance, identity)
        problem = await refused(await api.delete(f"/v1/operations/{identity}"), 409)
        assert ":rollback" in problem["remedy"]

    async def test_an_unknown_one_is_not_found(self, api):
        await refused(await api.delete("/v1/operations/none"), 404, "path.id")
        await refused(await api.post("/v1/operations/none:rollback"), 404, "path.id")

    @pytest.mark.parametrize(
        ("path", "body", "kind", "ranks"),
        [
            (DRAIN, WHY, OperationKind.REJOIN, (2,)),
            ("/v1/ranks/2:cordon", WHY, OperationKind.UNCORDON, (2,)),
            ("/v1/hosts/host-0:drain", WHY, OperationKind.REJOIN, (0, 1)),
            ("/v1/ranks/2:replace", {**WHY, "by": 3}, OperationKind.REPLACE, (3,)),
            ("/v1/pause", WHY, OperationKind.RESUME, ()),
        ],
    )
    async def test_an_ended_one_is_undone_by_its_opposite(self, api, instance, path, *, body, kind, ranks):
        identity = await self.made(api, path, body)
        await self.end(instance, identity)
        answer = await api.post(f"/v1/operations/{identity}:rollback", json={"reason": "wrong rank"})
        assert answer.status == 202, await answer.text()
        undo = await answer.json()
        assert (undo["kind"], tuple(undo["ranks"]), undo["reason"]) == (kind, ranks, "wrong rank")

    async def test_a_scaling_is_undone_to_the_size_before(self, api, instance):
        identity = await self.made(api, "/v1/scale", {"target": 3})
        await self.end(instance, identity)
        recovery = msgspec.structs.replace(instance.recovery, cause=identity)
        await instance.store(instance.keys.recovery(recovery.id), recovery)
        answer = await api.post(f"/v1/operations/{identity}:rollback")
        assert (await answer.json())["parameters"] == {"target": 2}

    @pytest.mark.parametrize("state", [OperationState.RUNNING, OperationState.REFUSED])
    async def test_what_did_not_happen_cannot_be_undone(self, api, instance, state):
        identity = await self.made(api)
        await self.end(instance, identity, state)
        assert (await refused(await api.post(f"/v1/operations/{identity}:rollback"), 409))["remedy"]

    async def test_a_rebalance_has_no_opposite(self, api, instance):
        identity = await self.made(api, "/v1/rebalance", {})
        await self.end(instance, identity)
        await refused(await api.post(f"/v1/operations/{identity}:rollback"), 409)


class TestSglangNames:
    async def test_scaling_by_sglangs_request(self, api, instance):
        answer = await api.post("/scale_elastic_ep", json={"new_ep_size": 2, "more": 1})
        assert answer.status == 200
        said = await answer.json()
        assert (said["old_ep_size"], said["new_ep_size"]) == (3, 2)
        (operation,) = await stored(instance)
        assert (operation.kind, operation.parameters) == (OperationKind.SCALE, {"target": 2})
        state = await (await api.get("/is_scaling_elastic_ep")).json()
        assert state == {
            "is_scaling_elastic_ep": True,
            "effective_ep_size": 3,
            "pending_ep_size": 2,
            "scale_phase": "pending",
            "last_error": None,
        }
        answer = await api.post("/scale_elastic_ep", json={"new_ep_size": 4})
        assert answer.status == 409
        assert "has not completed yet" in (await answer.json())["error"]

    async def test_a_failed_scaling_leaves_its_error(self, api, instance):
        await api.post("/scale_elastic_ep", json={"new_ep_size": 2})
        (operation,) = await stored(instance)
        failed = msgspec.structs.replace(operation, state=OperationState.FAILED, message="rank 3 did not acknowledge")
        await instance.store(instance.keys.operation(operation.id), failed)
        state = await (await api.get("/is_scaling_elastic_ep")).json()
        assert (state["is_scaling_elastic_ep"], state["last_error"]) == (False, "rank 3 did not acknowledge")

    @pytest.mark.parametrize("size", [0, -1, "4", None, 1.5, True])
    async def test_a_size_that_is_none_is_an_error_in_sglangs_form(self, api, size):
        answer = await api.post("/scale_elastic_ep", json={"new_ep_size": size})
        assert answer.status == 400
        assert "new_ep_size" in (await answer.json())["error"]


async def test_every_mutation_is_audited_with_who_why_and_what_came_of_it(api, caplog):
    caplog.set_level(logging.INFO, logger="eep.audit")
    await api.post(DRAIN, json=WHY)
    await api.post(DRAIN, json=WHY, headers=as_bearer("x" * 20))
    done, denied = caplog.records
    assert (done.who, done.role, done.status, done.reason) == ("alice", "operator", 202, "fan is loud")
    assert done.operation
    assert (denied.who, denied.status) == ("-", 401)
    assert OPERATOR not in caplog.text
