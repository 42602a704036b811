"""A server that answers ``/generate`` the way SGLang 0.5.23 does, for the faults that a real one cannot be asked for.

Its "model" makes each token a hash of everything before it, so a resumed answer equals an undisturbed one if and only
if the prompt and every token before the cut were handed over exactly.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from dataclasses import dataclass, field

from aiohttp import web

VOCABULARY = 2048
FIRST_ORDINARY = 5


def next_token(ids):
    return FIRST_ORDINARY + zlib.crc32(b",".join(str(token).encode() for token in ids)) % (VOCABULARY - FIRST_ORDINARY)


def answer_of(prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


@dataclass(eq=False)
class Rank:
    """Start with ``async with rank:``; then ``rank.url``. Verbs change what the next or running requests see."""

    incremental: bool = True
    pause_s: float = 0.0
    eos: int = -1
    host: str = "127.0.0.1"
    cut_at: int | None = None
    """After so many tokens of one request: HTTP 200 just ends."""
    hang_at: int | None = None
    error_at: int | None = None
    refuse: tuple[int, str] | None = None
    bodies: list = field(default_factory=list)
    aborted: list = field(default_factory=list)
    end_mark_after_s: float = 0.0
    """Between the finish reason and the end mark."""
    breaks_after_finish: bool = False
    """The connection breaks behind the finish reason, before the end mark."""
    clients: set = field(default_factory=set)
    """Addresses that requests came from: one for each connection."""
    gone: int = 0
    """Clients that left before their answer's end."""

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        await self._listen(0)
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    async def _listen(self, port):
        site = web.TCPSite(self.runner, self.host, port, shutdown_timeout=0.1)
        await site.start()
        self.url = f"http://{self.host}:{site._server.sockets[0].getsockname()[1]}"

    async def _abort(self, request):
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _generate(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.clients.add(request.transport.get_extra_info("peername"))
        if self.refuse:
            status, message = self.refuse
            return web.json_response({"error": {"message": message}}, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            if await self._stream(response, body):
                await asyncio.sleep(self.end_mark_after_s)
                if self.breaks_after_finish:
                    request.transport.abort()
                await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            raise
        return response

    async def _stream(self, response, body):
        ids, wanted = list(body["input_ids"]), body["sampling_params"]["max_new_tokens"]
        start, sent = len(ids), 0
        while True:
            made = len(ids) - start
            if self.cut_at is not None and made >= self.cut_at:
                return False
            if self.hang_at is not None and made >= self.hang_at:
                await asyncio.sleep(3600)
            if self.error_at is not None and made >= self.error_at:
                await response.write(_event({"error": {"message": "the scheduler died", "code": 500}}))
                return True
            await asyncio.sleep(self.pause_s)
            ids.append(next_token(ids))
            finish = self._finish(ids[-1], made + 1, wanted, body)
            out = ids[start + sent :] if self.incremental else ids[start:]
            sent = made + 1
            meta = {"id": body.get("rid"), "finish_reason": finish, "prompt_tokens": start, "completion_tokens": sent}
            if body.get("return_logprob"):
                first = start + sent - len(out)
                meta["output_token_logprobs"] = [[-0.5, token, None] for token in ids[first:]]
                meta["output_top_logprobs"] = [[[-0.5, token, None], [-1.5, 7, None]] for token in ids[first:]]
            await response.write(_event({"text": "", "output_ids": out, "meta_info": meta}))
            if finish:
                return True

    def _finish(self, token, made, wanted, body):
        if token == self.eos or token in (body["sampling_params"].get("stop_token_ids") or ()):
            return {"type": "stop", "matched": token}
        return {"type": "length", "length": wanted} if made >= wanted else None


def _event(content):
    return b"data: " + json.dumps(content).encode() + b"\n\n"
