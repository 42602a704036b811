"""What eepctl changes, what it asks before, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from schemas.operations import OperationKind, OperationState
from tests.admin.instance import OPERATOR, VIEWER


async def operations(instance):
    return await instance.archive.operations()


async def ending(instance, state=OperationState.DONE, **fields):
    """Play the leader: end the first operation that appears."""
    async with asyncio.timeout(20):
        async for _ in instance.archive.changes(after=instance.current.revision):
            if found := await operations(instance):
                break
        ended = msgspec.structs.replace(found[0], state=state, finished_unix_ns=1, **fields)
        await instance.store(instance.keys.operation(ended.id), ended)


@pytest.mark.parametrize(
    ("words", "kind", "expected"),
    [
        ("drain 2 --reason fan --deadline 30", OperationKind.DRAIN, {"ranks": (2,), "deadline_s": 30.0}),
        ("drain --host host-0 -r fan --yes", OperationKind.DRAIN, {"host": "host-0"}),
        ("cordon 2 --reason fan", OperationKind.CORDON, {"ranks": (2,), "reason": "fan"}),
        ("uncordon 2", OperationKind.UNCORDON, {"ranks": (2,)}),
        ("rejoin 3", OperationKind.REJOIN, {"ranks": (3,)}),
        ("replace 2 --by 3 -r fan -y", OperationKind.REPLACE, {"parameters": {"by": (3,)}}),
        ("scale 4", OperationKind.SCALE, {"parameters": {"target": 4}}),
        ("scale 2 --rank 1 --yes", OperationKind.SCALE, {"ranks": (1,)}),
        ("rebalance --max-bytes 10", OperationKind.REBALANCE, {"parameters": {"max_bytes": 10}}),
        ("lend 1 2 --to batch -r night --yes", OperationKind.LEND, {"ranks": (1, 2)}),
        ("reclaim 1", OperationKind.RECLAIM, {"ranks": (1,)}),
        ("notice --host host-0 --deadline 60 -r spot --yes", OperationKind.NOTICE, {"host": "host-0"}),
        ("pause --reason upgrade --losses", OperationKind.PAUSE, {"parameters": {"losses": True}}),
        ("resume", OperationKind.RESUME, {}),
        ("plan --target 4 --apply --yes", OperationKind.SCALE, {"parameters": {"target": 4}}),
    ],
)
async def test_each_command_makes_its_operation(eepctl, instance, words, kind, expected):
    shown = await eepctl(*words.split())
    assert shown.exit_code == 0, shown.output
    (operation,) = await operations(instance)
    assert operation.kind is kind
    assert {name: getattr(operation, name) for name in expected} == expected
    assert operation.id in shown.stdout


@pytest.mark.parametrize(
    "words",
    [
        "drain --host host-0 -r fan",
        "replace 2 --by 3 -r fan",
        "scale 2",
        "lend 1 --to batch -r night",
        "notice --rank 1 --deadline 60 -r spot",
        "pause -r upgrade",
    ],
)
async def test_what_destroys_is_not_done_unasked(eepctl, instance, words):
    shown = await eepctl(*words.split())
    assert shown.exit_code == 2
    assert "--yes" in shown.stderr
    assert await operations(instance) == []


@pytest.mark.parametrize(
    "words", ["plan", "plan --dry-run", "plan --drain 2", "drain 2 -r x --dry-run", "scale 2 --dry-run"]
)
async def test_a_dry_run_tells_pause_bytes_and_headroom_and_does_nothing(eepctl, instance, words):
    shown = await eepctl(*words.split())
    assert shown.exit_code == 0, shown.output
    assert re.search(r"pause +12 ms", shown.stdout)
    assert re.search(r"headroom +1 → 0", shown.stdout)
    assert await operations(instance) == []


async def test_a_dry_run_as_json(eepctl):
    assert json.loads((await eepctl("plan", "-o", "json")).stdout)["pause_ms"] == 12.5


async def test_a_refusal_tells_why_and_the_headroom(eepctl, instance):
    instance.prediction = msgspec.structs.replace(
        instance.prediction, allowed=False, refusal="2 ranks hold 6 slots, 8 are needed"
    )
    shown = await eepctl("drain", "2", "--reason", "fan")
    assert shown.exit_code == 1
    assert "2 ranks hold 6 slots, 8 are needed" in shown.stderr
    assert "headroom: 1 → 0" in shown.stderr


async def test_a_drain_needs_a_reason_and_one_target(eepctl):
    shown = await eepctl("drain", "2")
    assert shown.exit_code == 2
    assert "--reason" in shown.stderr
    for words in (["drain"], ["drain", "2", "--host", "h"]):
        assert (await eepctl(*words, "-r", "x")).exit_code == 2


async def test_an_epoch_that_has_passed_is_refused(eepctl):
    shown = await eepctl("drain", "2", "-r", "x", "--epoch", "6")
    assert shown.exit_code == 1
    assert "If-Match" in shown.stderr


class TestWait:
    async def test_it_ends_with_the_operation(self, eepctl, instance):
        leader = asyncio.create_task(ending(instance, epoch=8, message="rank 2 is out", safe_to_terminate=(2,)))
        shown = await eepctl("drain", "2", "-r", "fan", "--wait")
        await leader
        assert shown.exit_code == 0, shown.output
        assert "done · epoch 8 · rank 2 is out" in shown.stdout

    @pytest.mark.parametrize("state", [OperationState.FAILED, OperationState.REFUSED, OperationState.CANCELLED])
    async def test_an_operation_that_is_not_done_fails(self, eepctl, instance, state):
        leader = asyncio.create_task(ending(instance, state, message="rank 1 did not acknowledge"))
        shown = await eepctl("drain", "2", "-r", "fan", "--wait")
        await leader
        assert shown.exit_code == 5
        assert f"{state}: rank 1 did not acknowledge" in shown.stderr

    async def test_it_does_not_wait_for_ever(self, eepctl):
        shown = await eepctl("drain", "2", "-r", "fan", "--wait", "--wait-timeout", "0.5")
        assert shown.exit_code == 6
        assert "eepctl ops show" in shown.stderr

    async def test_an_operation_made_by_someone_else_can_be_awaited(self, eepctl, instance):
        await eepctl("drain", "2", "-r", "fan")
        (operation,) = await operations(instance)
        await ending(instance)
        assert (await eepctl("ops", "wait", operation.id)).exit_code == 0


class TestOps:
    async def test_cancel_and_rollback(self, eepctl, instance):
        await eepctl("drain", "2", "-r", "fan")
        (operation,) = await operations(instance)
        assert (await eepctl("ops", "cancel", operation.id)).exit_code == 2
        assert (await eepctl("ops", "cancel", operation.id, "--yes")).exit_code == 0
        assert (await operations(instance))[0].cancel_requested == "alice"
        await ending(instance)
        assert (await eepctl("ops", "rollback", operation.id, "--yes")).exit_code == 0
        assert {one.kind for one in await operations(instance)} == {OperationKind.DRAIN, OperationKind.REJOIN}


class TestReaching:
    async def test_a_viewer_is_told_that_the_role_does_not_suffice(self, eepctl):
        shown = await eepctl("cordon", "2", "-r", "x", EEP_TOKEN=VIEWER)
        assert shown.exit_code == 4
        assert "operator" in shown.stderr

    async def test_nobody_answers(self, run):
        shown = await run("--endpoint", "http://127.0.0.1:9", "status")
        assert shown.exit_code == 3
        assert "http://127.0.0.1:9" in shown.stderr

    async def test_another_endpoint_is_tried(self, run, server):
        url = str(server.make_url(""))
        shown = await run("-e", "http://127.0.0.1:9", "-e", url, "--token", OPERATOR, "status")
        assert shown.exit_code == 0, shown.output

    async def test_a_redirect_to_the_leader_keeps_token_and_body(self, run, server, instance):
        async def follower(request):
            raise web.HTTPTemporaryRedirect(str(server.make_url(request.path_qs)))

        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", follower)
        async with TestServer(app, host="localhost") as running:
            shown = await run("-e", running.make_url(""), "--token", OPERATOR, "cordon", "2", "-r", "x")
        assert shown.exit_code == 0, shown.output
        assert [one.reason for one in await operations(instance)] == ["x"]

    async def test_what_is_no_admin_api_is_called_so(self, run):
        async def page(request):
            return web.Response(text="<html>", status=404)

        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", page)
        async with TestServer(app) as running:
            shown = await run("-e", running.make_url(""), "status")
        assert shown.exit_code == 1
        assert "is this an EEP admin API?" in shown.stderr

    async def test_while_an_election_goes_on_the_change_is_sent_again_once(self, eepctl, instance):
        instance.change(leading=False, leader=None)

        async def elect():
            await asyncio.sleep(0.7)
            instance.change(leading=True)

        election = asyncio.create_task(elect())
        shown = await eepctl("cordon", "2", "-r", "x")
        await election
        assert shown.exit_code == 0, shown.output
        assert len(await operations(instance)) == 1
