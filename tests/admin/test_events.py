"""The stream of changes: ordered, complete, resumable."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
import pytest

from controlplane.etcd import Delete, Put, Txn
from schemas.codec import encode
from schemas.operations import Operation, OperationKind
from schemas.records import Registration


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    data: dict


def operation(number):
    return Operation(id=f"op-{number}", kind=OperationKind.CORDON, who="alice", reason="why", ranks=(number,))


async def write(instance, number):
    return await instance.store(instance.keys.operation(f"op-{number}"), operation(number))


async def read(api, count, *, headers=None, query=""):
    """The next ``count`` events after ``open``."""
    async with asyncio.timeout(20):
        answer = await api.get(f"/v1/events{query}", headers=headers or {})
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        events = []
        while len(events) <= count:
            events.append(await one(answer.content))
        answer.close()
    assert events[0].name == "open"
    return events[1:]


async def one(stream):
    fields = {"event": "", "id": "", "data": ""}
    while True:
        line = (await stream.readline()).decode().rstrip("\r\n")
        if not line and fields["event"]:
            data = msgspec.json.decode(fields["data"]) if fields["data"] else {}
            return Event(fields["event"], fields["id"], data)
        name, separator, value = line.partition(": ")
        if separator and name in fields:
            fields[name] = value


async def test_changes_come_as_the_api_shows_them(api, instance):
    after = await write(instance, 1)
    revision = await write(instance, 2)
    (event,) = await read(api, 1, query=f"?after={after}")
    assert (event.name, event.id) == ("operation", str(revision))
    assert event.data["record"] == await (await api.get("/v1/operations/op-2")).json()


async def test_last_event_id_resumes_without_loss_or_repetition(api, instance):
    revisions = [await write(instance, number) for number in range(5)]
    events = await read(api, 3, headers={"Last-Event-ID": str(revisions[1])})
    assert [event.id for event in events] == [str(revision) for revision in revisions[2:]]
    assert [event.data["record"]["ranks"] for event in events] == [[2], [3], [4]]


async def test_a_new_reader_starts_now_and_sees_what_comes(api, instance):
    instance.change(revision=await write(instance, 1))
    reading = asyncio.create_task(read(api, 1))
    revision = await write(instance, 2)
    (event,) = await reading
    assert (event.name, event.id, event.data["key"]) == ("operation", str(revision), "op-2")


async def test_only_the_last_event_of_a_revision_may_be_resumed_after(api, instance):
    after = await write(instance, 0)
    puts = tuple(Put(instance.keys.operation(f"op-{number}"), encode(operation(number))) for number in (1, 2, 3))
    together = await instance.etcd.txn(Txn(then=puts))
    events = await read(api, 3, query=f"?after={after}")
    assert [event.id for event in events] == ["", "", str(together.revision)]
    assert {event.data["revision"] for event in events} == {together.revision}


async def test_a_rank_that_goes_with_its_lease_is_told_as_null(api, instance):
    key = instance.keys.rank(3)
    after = await instance.store(key, Registration(rank=3, incarnation=1, host="h"))
    await instance.etcd.txn(Txn(then=(Delete(key),)))
    (event,) = await read(api, 1, query=f"?after={after}")
    assert (event.name, event.data["key"], event.data["record"]) == ("rank", "0003", None)


async def test_placements_are_not_streamed(api, instance):
    after = await instance.etcd.put(instance.keys.placement("abc"), b"x" * 1000)
    await instance.etcd.put(instance.keys.placement("def"), b"x" * 1000)
    await write(instance, 1)
    (event,) = await read(api, 1, query=f"?after={after}")
    assert event.name == "operation"


async def test_a_compacted_revision_ends_the_stream_with_a_reset(api, instance):
    after = await write(instance, 1)
    await write(instance, 2)
    await instance.etcd.compact(await write(instance, 3))
    (event,) = await read(api, 1, query=f"?after={after}")
    assert event.name == "reset"
    assert event.data["status"] == 410
    assert "/v1/cluster" in event.data["remedy"]


@pytest.mark.parametrize("identity", ["x", "-1", "1.5", ""])
async def test_an_id_that_is_none_is_refused(api, identity):
    answer = await api.get("/v1/events", headers={"Last-Event-ID": identity})
    assert answer.status == 400
    assert (await answer.json())["field"] == "header.Last-Event-ID"


async def test_a_damaged_record_is_passed_by_and_the_rest_is_told(api, instance):
    after = await instance.etcd.put(instance.keys.operation("bad"), b"\xff")
    await instance.etcd.put(instance.keys.operation("worse"), b"\xff")
    await write(instance, 1)
    (event,) = await read(api, 1, query=f"?after={after}")
    assert event.data["key"] == "op-1"
    rows = (await (await api.get("/v1/operations")).json())["operations"]
    assert [row["id"] for row in rows] == ["op-1"]


async def test_an_open_stream_does_not_hold_up_the_end_of_the_server(instance, tmp_path):
    client = instance.client(tmp_path)
    await client.start_server()
    answer = await client.get("/v1/events")
    assert (await one(answer.content)).name == "open"
    async with asyncio.timeout(5):  # aiohttp would give a stream that goes on a minute
        await client.server.close()
        assert await answer.content.read() == b""
    await client.close()
