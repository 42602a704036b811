"""The engine's end and the agent's end of their socket, against each other."""

import asyncio

import pytest
from aiohttp import web

from native import _native
from schemas.messages import Commit, Drain, EngineStatus, Hello, Peer, Prepare
from schemas.vocabulary import Cut, stamp_of
from tests.engine.ranks import Ranks
from worker.engine.client import EngineClient, EngineGoneError
from worker.engine.control import Control


@pytest.fixture
def ranks(tmp_path):
    made = Ranks(tmp_path, 1)
    yield made
    made.close()


@pytest.fixture
async def url(unused_tcp_port):
    async def answer(_):
        return web.json_response({})

    application = web.Application()
    application.router.add_get("/model_info", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    yield f"http://127.0.0.1:{unused_tcp_port}"
    await runner.cleanup()


def control_of(engine, folder, url):
    from msgspec import structs

    hello = Hello(
        rank=0, incarnation=engine.member.incarnation, pid=1, link_address=engine.address, layers=2, experts=6,
        slots=12, expert_bytes=1, model="m", checkpoint="c",
    )  # fmt: skip

    def status():
        return EngineStatus(
            epoch=engine.membership.current.epoch, prepared=engine.membership.prepared, step=engine.lockstep.steps,
            running=0, waiting=0, draining=made.draining,
        )  # fmt: skip

    made = Control(
        settings=structs.replace(engine.preparing._settings, agent_socket=str(folder / "agent"), serve_url=url),
        hello=hello, block=engine.control, membership=engine.membership, preparing=engine.preparing, status=status,
    )  # fmt: skip
    engine.preparing.start = lambda answer: setattr(engine.preparing, "_answer", answer)  # it works already
    engine.lockstep.tell = made.tell
    return made


async def test_an_engine_is_led_into_its_first_epoch_and_drained(tmp_path, ranks, url):
    engine = ranks.engines[0]
    control = control_of(engine, tmp_path, url)
    async with EngineClient(str(tmp_path / "agent"), expect=1) as client:
        with pytest.raises(EngineGoneError, match="Drain was not sent"):
            await client.send(Drain(deadline_s=1.0))
        control.start()
        hello = await client.wait(lambda: client.hello, within_s=5)
        assert (hello.rank, hello.experts) == (0, 6)
        await asyncio.sleep(0.3)
        assert client.ready is None  # the scheduler has not ticked yet
        control.ticked()
        assert (await client.wait(lambda: client.ready, within_s=5)).serve_url == url

        request = Prepare(
            epoch=1, stamp=stamp_of(1), members=(engine.member,), placement=ranks.placement([0]).wire,
            cut=Cut.PLANNED, deadline_s=5.0,
            peers=(Peer(rank=0, incarnation=1, host="h", link_address=engine.address),),
        )  # fmt: skip
        prepared = await client.prepare(request)
        assert prepared.ok, prepared.error
        assert [phase.slots for phase in prepared.loads] == [12]
        await client.send(Commit(epoch=1, stamp=stamp_of(1), cut=Cut.PLANNED))
        while not engine.lockstep.wanted():
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(engine.lockstep.enter, 3) == 1
        assert (await client.wait(lambda: client.activated, within_s=5)).epoch == 1

        assert not (await client.ask()).draining
        await client.send(Drain(deadline_s=5.0))
        status = await client.ask()
        assert (status.epoch, status.step, status.draining) == (1, 1, True)
        assert engine.control.phase == _native.Phase.DRAINING


async def test_an_agent_that_comes_back_is_told_everything_again(tmp_path, ranks, url):
    control = control_of(ranks.engines[0], tmp_path, url)
    control.ticked()
    control.start()
    for _ in range(2):
        async with EngineClient(str(tmp_path / "agent"), expect=1) as client:
            assert (await client.wait(lambda: client.hello, within_s=5)).incarnation == 1
            assert (await client.wait(lambda: client.ready, within_s=5)).serve_url == url
            client._writer.close()


async def test_an_engine_of_another_incarnation_is_turned_away(tmp_path, ranks, url):
    control_of(ranks.engines[0], tmp_path, url).start()
    async with EngineClient(str(tmp_path / "agent"), expect=2) as client:
        with pytest.raises(TimeoutError):
            await client.wait(lambda: client.hello, within_s=0.5)
        assert not client.connected


async def test_bytes_that_are_no_message_end_the_connection_only(tmp_path):
    async with EngineClient(str(tmp_path / "agent")) as client:
        for junk in (b"\xff\xff\xff\xff", b"\x03\0\0\0abc", b""):
            _, writer = await asyncio.open_unix_connection(client.path)
            writer.write(junk)
            writer.close()
        await asyncio.sleep(0.1)
        assert not client.connected
