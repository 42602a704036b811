"""What eepctl shows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import partial

import msgspec
import pytest

from schemas.operations import Operation, OperationKind, OperationState
from schemas.records import RankView, Status
from schemas.vocabulary import RankState
from tests.admin.instance import OPERATOR


async def test_status_shows_the_ranks_first_and_only_columns_that_say_something(eepctl):
    shown = await eepctl("status")
    assert shown.exit_code == 0, shown.output
    first, header, *_ = [line for line in shown.stdout.splitlines() if line.strip()]
    assert "epoch 7 · leader cp-1 (fence 42) · 3/4 ranks · can lose" in first
    assert header.split() == ["RANK", "STATE", "HOST", "EXPERTS", "SINCE", "REASON"]
    assert "dead: engine exited 137" in shown.stdout


async def test_columns_appear_with_their_first_value(eepctl, instance):
    views = (RankView(rank=0, state=RankState.ACTIVE, lent_to="batch", cordoned="bob: fans"),)
    instance.change(status=Status(ranks=views, paused="bob: upgrade"))
    shown = await eepctl("status")
    assert "LENT TO" in shown.stdout
    assert "CORDONED" in shown.stdout
    assert "paused by bob: upgrade" in shown.stdout


async def test_wide_shows_everything_and_json_is_the_apis_own(eepctl):
    assert "INCARNATION" in (await eepctl("status", "-o", "wide")).stdout
    document = json.loads((await eepctl("status", "-o", "json")).stdout)
    assert document["cluster"]["epoch"] == 7
    assert [row["rank"] for row in document["ranks"]] == [0, 1, 2, 3]


async def test_epochs_and_recoveries(eepctl):
    shown = await eepctl("epochs")
    assert "0-2" in shown.stdout
    assert "rank 3 is dead" in shown.stdout
    assert "500ms" in (await eepctl("recoveries")).stdout
    one = await eepctl("recoveries", "r-1")
    assert "detect" in one.stdout
    assert "10ms" in one.stdout
    assert "0af7651916cd43dd8448eb211c80319c" in one.stdout
    assert json.loads((await eepctl("recoveries", "r-1", "-o", "json")).stdout)["id"] == "r-1"


async def test_ops_list_and_one(eepctl, instance):
    operation = Operation(
        id="op-1",
        kind=OperationKind.DRAIN,
        who="alice",
        reason="fan",
        ranks=(2,),
        created_unix_ns=1,
        safe_to_terminate=(2,),
    )
    await instance.store(instance.keys.operation("op-1"), operation)
    shown = await eepctl("ops")
    assert "MAY BE SWITCHED OFF" in shown.stdout
    assert "alice" in shown.stdout
    assert "op-1" in (await eepctl("ops", "show", "op-1")).stdout
    missing = await eepctl("ops", "show", "none")
    assert missing.exit_code == 1
    assert "path.id" in missing.stderr


async def following(server, *words):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "controlplane.cli", *words),
        env={**os.environ, "EEP_ENDPOINTS": str(server.make_url("")), "EEP_TOKEN": OPERATOR},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Ctrl-C reaches it as on a terminal, also where these tests run in a background job, which ignores SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


async def test_events_are_printed_as_they_come(server, instance):
    await instance.store(
        instance.keys.operation("op-1"), Operation(id="op-1", kind=OperationKind.CORDON, who="a", reason="b")
    )
    process = await following(server, "events", "--after", str(instance.current.revision), "-o", "json")
    try:
        async with asyncio.timeout(30):
            line = json.loads(await process.stdout.readline())
            assert (line["event"], line["key"]) == ("operation", "op-1")
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()


async def until(stream, text):
    while text not in (line := await stream.readline()):
        assert line, f"{text!r} never came"


async def test_watch_draws_again_when_something_changes(server, instance):
    process = await following(server, "watch")
    try:
        async with asyncio.timeout(30):
            await until(process.stdout, b"epoch 7")
            record = instance.current.epoch
            moved = msgspec.structs.replace(record, committed=msgspec.structs.replace(record.committed, epoch=8))
            instance.change(epoch=moved)
            await instance.store(instance.keys.epoch, moved)
            await until(process.stdout, b"epoch 8")
    finally:
        process.kill()
        await process.wait()


class TestDoctor:
    async def test_a_healthy_instance_passes(self, eepctl, instance):
        from schemas.placement import Placement

        placement = Placement.round_robin(layers=2, experts=4, ranks=range(3), max_ranks=4, slots=4)
        active = tuple(RankView(rank=rank, state=RankState.ACTIVE) for rank in range(4))
        instance.change(placement=placement, status=Status(ranks=active))
        shown = await eepctl("doctor")
        assert shown.exit_code == 0, shown.output
        assert "NOT OK" not in shown.stdout

    async def test_what_needs_a_person_is_named_with_a_remedy(self, eepctl, instance):
        failed = Operation(
            id="op-1",
            kind=OperationKind.DRAIN,
            who="a",
            reason="b",
            state=OperationState.FAILED,
            message="rank 2 is late",
        )
        await instance.store(instance.keys.operation("op-1"), failed)
        instance.change(status=Status(ranks=instance.current.status.ranks, paused="bob: upgrade"), connected=False)
        shown = await eepctl("doctor", "-o", "json")
        assert shown.exit_code == 7
        bad = {finding["check"] for finding in json.loads(shown.stdout)["findings"] if not finding["ok"]}
        assert bad >= {"replica", "ranks", "recovery", "operations"}
        assert all(one["remedy"] for one in json.loads(shown.stdout)["findings"] if not one["ok"])

    async def test_nobody_there(self, run):
        shown = await run("--endpoint", "http://127.0.0.1:9", "--timeout", "1", "doctor")
        assert shown.exit_code == 3
        assert "start it" in shown.stdout


@pytest.mark.parametrize("command", ["status", "epochs", "ops"])
async def test_without_a_token_the_remedy_is_told(eepctl, command):
    shown = await eepctl(command, EEP_TOKEN="")
    assert shown.exit_code == 4
    assert "EEP_TOKEN" in shown.stderr
