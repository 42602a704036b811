"""What goes to a client at once, and what waits for it to read."""

import asyncio
import json
import socket

from tests.gateway.conftest import PROMPT
from tests.standin.rank import Rank, answer_of

COUNT = 1200
"""Events that repeat everything are then some megabytes: more than the buffers between two sockets."""


async def _open(client, count, *, version="1.1", **more):
    sampling = {"max_new_tokens": count, "temperature": 0, "ignore_eos": True} | more
    body = json.dumps({"input_ids": PROMPT, "sampling_params": sampling, "stream": True}).encode()
    host, port = client.url.removeprefix("http://").split(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what is not read soon stands in the gateway
    narrow.connect((host, int(port)))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=4096)
    head = f"POST /generate HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


def _events(stream):
    return [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]


def _unchunked(stream):
    head, _, rest = stream.partition(b"\r\n\r\n")
    assert b"chunked" in head
    content = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            assert rest == b"\r\n"
            return content
        content, rest = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


async def test_a_client_that_does_not_read_for_a_while_gets_every_event_once_and_in_order(gateway):
    async with Rank() as rank, gateway(rank, stall_s=60.0) as client:
        reader, writer = await _open(client, COUNT)
        await client.until(lambda: rank.bodies and not client.service.ranks.carriers)  # the rank has said it all
        assert client.service.admission.running == 1
        content = _unchunked(await reader.read(-1))
        writer.close()
        events = _events(content)
        assert content.endswith(b"data: [DONE]\n\n")
        assert [event["meta_info"]["completion_tokens"] for event in events] == [*range(1, COUNT + 1), COUNT]
        assert events[-1]["output_ids"] == answer_of(PROMPT, COUNT)
        assert client.ended()[0]["completion_tokens"] == COUNT


async def test_the_gateway_keeps_what_a_client_does_not_read_and_no_more_is_written_to_it(gateway):
    async with Rank() as rank, gateway(rank, stall_s=60.0) as client:
        _, writer = await _open(client, COUNT)
        await client.until(lambda: client.service.ranks.carriers)
        (carrier,) = client.service.ranks.carriers
        running = carrier._deliver.running
        await client.until(lambda: rank.bodies and not client.service.ranks.carriers)
        assert len(running._box) > 1  # pieces, not only the end
        writer.transport.abort()
        await client.until(client.ended)
        assert client.ended()[0]["ending"] == "abandoned"


async def test_a_client_of_http_1_0_gets_its_events_without_chunks(gateway):
    async with Rank(pause_s=0.002) as rank, gateway(rank) as client:
        reader, writer = await _open(client, 20, version="1.0")
        head, _, content = (await reader.read(-1)).partition(b"\r\n\r\n")
        writer.close()
        assert b"chunked" not in head
        assert content.endswith(b"data: [DONE]\n\n")
        assert _events(content)[-1]["output_ids"] == answer_of(PROMPT, 20)


async def test_a_token_reaches_the_client_before_the_next_one_is_made(gateway):
    async with Rank(hang_at=7) as rank, gateway(rank, stall_s=60.0) as client:
        reader, writer = await _open(client, 20)
        async with asyncio.timeout(30):
            while b'"completion_tokens":7' not in await reader.readuntil(b"\n\n"):
                pass
        writer.close()
