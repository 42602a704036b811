import asyncio
from contextlib import asynccontextmanager

import pytest

from controlplane.gateway.connections import Connections

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Server:
    """Says what ``answer`` makes of each request; counts who connects."""

    def __init__(self, answer):
        self.answer = answer
        self.connected = self.gone = 0
        self.requests = []

    @asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/below"
        finally:
            server.close()

    async def _serve(self, reader, writer):
        self.connected += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((head.split(b" HTTP")[0], await reader.readexactly(length)))
                await self.answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            writer.close()


async def _whole(writer):
    writer.write(HEAD + b"2\r\nab\r\n")
    writer.write(b"1\r\nc\r\n" + END)


async def _forever(writer):
    writer.write(HEAD + b"2\r\nab\r\n")
    await asyncio.sleep(3600)


async def _broken(writer):
    writer.write(HEAD + b"5\r\nab")
    writer.close()


async def _until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def _ask(connections, url, take=None):
    heard = []
    status = await connections.post(
        url, "/generate", b"{}", take or (lambda status, part: heard.append((status, part)))
    )
    return status, {status for status, _ in heard}, b"".join(part for _, part in heard)


async def test_answers_come_whole_and_the_connection_is_used_again():
    server, connections = Server(_whole), Connections()
    async with server.listening() as url:
        for _ in range(3):
            assert await _ask(connections, url) == (200, {200}, b"abc")
        assert server.connected == 1
        assert server.requests == [(b"POST /below/generate", b"{}")] * 3
        connections.close()
        await _until(lambda: server.gone)


async def test_two_answers_at_once_have_a_connection_each():
    server, connections = Server(_whole), Connections()
    async with server.listening() as url:
        assert await asyncio.gather(*(_ask(connections, url) for _ in range(2))) == [(200, {200}, b"abc")] * 2
        assert server.connected == 2
        connections.close()


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used():
    async def closing(writer):
        await _whole(writer)
        writer.close()

    server, connections = Server(closing), Connections()
    async with server.listening() as url:
        for _ in range(2):
            assert (await _ask(connections, url))[0] == 200
            await asyncio.sleep(0.1)  # until its end has come
        assert server.connected == 2


async def test_a_connection_that_was_not_used_for_long_is_closed(monkeypatch):
    monkeypatch.setattr("controlplane.gateway.connections._KEEP_S", 0.0)
    server, connections = Server(_whole), Connections()
    async with server.listening() as url:
        await _ask(connections, url)
        await _ask(connections, url)
        assert server.connected == 2
        await _until(lambda: server.gone)
        connections.close()


async def test_connections_to_servers_that_are_gone_are_forgotten():
    first, second, connections = Server(_whole), Server(_whole), Connections()
    async with first.listening() as url:
        await _ask(connections, url)
        (kept,) = connections._idle[url]
        kept._transport.abort()
        await _until(lambda: not kept.free)
    async with second.listening() as other:
        await _ask(connections, other)
        assert list(connections._idle) == [other]
        connections.close()


async def test_an_answer_that_breaks_off_is_an_error_whatever_came_before():
    server, connections, heard = Server(_broken), Connections(), []
    async with server.listening() as url:
        with pytest.raises(OSError, match="closed"):
            await _ask(connections, url, lambda status, part: heard.append(part))
    assert b"".join(heard) == b"ab"


async def test_nobody_listens():
    server, connections = Server(_whole), Connections()
    async with server.listening() as url:
        pass
    with pytest.raises(OSError, match=r"."):
        await _ask(connections, url)


async def test_what_the_taker_cannot_read_ends_the_answer_and_the_connection():
    def refuse(status, part):
        if part:
            raise ValueError("not what was expected")

    server, connections = Server(_forever), Connections()
    async with server.listening() as url:
        with pytest.raises(ValueError, match="expected"):
            await _ask(connections, url, refuse)
        await _ask_again_on_another(server, connections, url)


async def _ask_again_on_another(server, connections, url):
    server.answer = _whole
    assert (await _ask(connections, url))[0] == 200
    assert server.connected == 2
    connections.close()


async def test_who_leaves_an_answer_closes_its_connection():
    server, connections, heard = Server(_forever), Connections(), []
    async with server.listening() as url:
        asking = asyncio.create_task(_ask(connections, url, lambda status, part: heard.append(part)))
        await _until(lambda: heard)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await _ask_again_on_another(server, connections, url)
