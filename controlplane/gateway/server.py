"""The HTTP surface: routes to parsers, answers to events, errors to statuses."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from controlplane.gateway.errors import BadRequestError, GatewayError
from controlplane.gateway.events import DONE, EventStream, encoded
from controlplane.gateway.native import parse as parse_native
from controlplane.gateway.openai_request import parse_chat, parse_completion
from controlplane.telemetry import metrics_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry

    from controlplane.gateway.job import Job
    from controlplane.gateway.service import Running, Service

    Parser = Callable[[Mapping[str, Any], str, web.Request], Job]

_LARGEST_BODY = 32 << 20


@dataclass(frozen=True)
class Server:
    """Handlers over one ``Service``."""

    service: Service
    registry: CollectorRegistry

    def application(self) -> web.Application:
        """The aiohttp application; run it with ``handler_cancellation=True``: a client that leaves is noticed."""
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_post("/generate", self._handler(self._native))
        app.router.add_post("/v1/completions", self._handler(self._completion))
        app.router.add_post("/v1/chat/completions", self._handler(self._chat))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        return app

    # --- parsers -----------------------------------------------------------------------------------------------------

    def _native(self, body: Mapping[str, Any], request_id: str, request: web.Request) -> Job:
        return parse_native(
            body,
            model=self.service.model,
            request_id=request_id,
            seeded_ranks=self.service.config.seeded_ranks,
            incremental=request.headers.get("EEP-Stream") == "incremental",
        )

    def _completion(self, body: Mapping[str, Any], request_id: str, _: web.Request) -> Job:
        seeded = self.service.config.seeded_ranks
        return parse_completion(body, model=self.service.model, request_id=request_id, seeded_ranks=seeded)

    def _chat(self, body: Mapping[str, Any], request_id: str, _: web.Request) -> Job:
        seeded = self.service.config.seeded_ranks
        return parse_chat(body, model=self.service.model, request_id=request_id, seeded_ranks=seeded)

    # --- answering ---------------------------------------------------------------------------------------------------

    def _handler(self, parser: Parser) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
            try:
                job = parser(await _body(request), uuid.uuid4().hex, request)
                deadline_s = _deadline(request)
                self._describe(job, stream)
                async with self.service.run(
                    job, deadline_s=deadline_s, traceparent=request.headers.get("traceparent", "")
                ) as running:
                    if job.stream:
                        return await self._stream(request, stream, running)
                    return await self._whole(running)
            except GatewayError as error:
                if not stream.prepared:
                    return _refusal(error)
                return stream  # the stream has said it already
            except ConnectionResetError:
                return stream  # the client left while it was written to

        return handle

    def _describe(self, job: Job, stream: web.StreamResponse) -> None:
        stream.headers["EEP-Request-Id"] = job.id
        stream.headers["EEP-Resume-Exact"] = _exact(job, seeded_ranks=self.service.config.seeded_ranks)

    async def _stream(self, request: web.Request, stream: web.StreamResponse, running: Running) -> web.StreamResponse:
        """Events as they come; the status waits for the first one, so that an early failure has a status of its own."""
        events = EventStream(request, stream, running)
        try:
            async for batch in running.news():
                await events.write(b"".join(events.said(index, what) for index, what in batch))
                running.reader = events.write_at_once
        except GatewayError as error:
            if stream.prepared:
                await events.write(encoded(running.job.presenter.error(error)) + DONE)
            raise
        closing = running.job.presenter.closing(running.generations)
        await events.write((encoded(closing) if closing is not None else b"") + DONE)
        await stream.write_eof()
        return stream

    async def _whole(self, running: Running) -> web.StreamResponse:
        answered = await running.whole()
        made = running.generations
        headers = {
            "EEP-Request-Id": running.job.id,
            "EEP-Resumed": str(sum(each.resumed for each in made)),
            "EEP-Resume-Exact": "false" if any(each.inexact for each in made) else "true",
            "EEP-Missing-Experts": str(max(each.missing for each in made)),
        }
        body = msgspec.json.encode(running.job.presenter.whole(answered))
        return web.Response(body=body, content_type="application/json", headers=headers)

    # --- about itself ------------------------------------------------------------------------------------------------

    async def _models(self, _: web.Request) -> web.Response:
        model = self.service.model
        entry = {"id": model.name, "object": "model", "created": 0, "owned_by": "eep", "max_model_len": model.context}
        return web.json_response({"object": "list", "data": [entry]})

    async def _health(self, _: web.Request) -> web.Response:
        """Alive: the loop turns."""
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        """Ready: some rank takes requests and we are not about to stop."""
        table = self.service.ranks.routes.table
        ready = bool(table.open) and not self.service.admission.closing
        return web.json_response(
            {"ready": ready, "epoch": table.epoch, "ranks": [route.rank for route in table.open]},
            status=200 if ready else 503,
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        self.service.metrics.queued.set(self.service.admission.queued)
        return await metrics_handler(self.registry)(request)


async def _body(request: web.Request) -> Mapping[str, Any]:
    try:
        body = msgspec.json.decode(await request.read())
    except msgspec.MsgspecError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object")
    return body


def _deadline(request: web.Request) -> float:
    """The client's own deadline from ``EEP-Timeout`` (seconds); 0 for none."""
    text = request.headers.get("EEP-Timeout", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise BadRequestError(f"EEP-Timeout: {text!r} is not a number of seconds", field="EEP-Timeout")
    return seconds


def _exact(job: Job, *, seeded_ranks: bool) -> str:
    """Whether these answers stay the same, token for token, if a rank dies."""
    doubts = (spec.sampling.inexact_after(seeded_ranks=seeded_ranks) for spec in job.specs)
    return "false" if any(doubts) else "true"


def _refusal(error: GatewayError) -> web.Response:
    headers = {"Retry-After": str(max(1, round(error.retry_after_s)))} if error.retry_after_s else {}
    body = msgspec.json.encode(error.as_json())
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)
