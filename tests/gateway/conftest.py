import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from controlplane.gateway.admission import Admission
from controlplane.gateway.audit import Audit
from controlplane.gateway.model import ServedModel
from controlplane.gateway.ranks import Ranks
from controlplane.gateway.routes import Route, Routes, RouteTable
from controlplane.gateway.server import Server
from controlplane.gateway.service import Service
from controlplane.telemetry import GatewayMetrics
from schemas.config import GatewayConfig
from tools.models.random_moe import SHIPPED

PROMPT = [11, 12, 13, 14]


@pytest.fixture(scope="session")
def model():
    return ServedModel.load(SHIPPED)


@dataclass
class Client:
    """A gateway and a session to it; ``routes`` is what etcd would say."""

    url: str
    routes: Routes
    service: Service
    registry: CollectorRegistry
    audit: object
    http: aiohttp.ClientSession
    epoch: int = 0
    ranks: list = field(default_factory=list)

    def serve(self, *ranks, draining=(), traceparent="", missing=0):
        """A new epoch of these stand-ins, by their place in ``self.ranks``."""
        self.epoch += 1
        routes = [
            Route(self.ranks.index(rank), 1, rank.url, draining=rank in draining)
            for rank in self.ranks
            if rank in ranks
        ]
        self.routes.replace(RouteTable(self.epoch, tuple(routes), traceparent, missing))

    async def post(self, path, body, **headers):
        async with self.http.post(self.url + path, json=body, headers=headers) as response:
            return response.status, response.headers, await response.json()

    async def generate(self, count=20, *, prompt=None, stream=False, **more):
        sampling = {"max_new_tokens": count, "temperature": 0, "ignore_eos": True} | more
        return await self.post("/generate", {"input_ids": prompt or PROMPT, "sampling_params": sampling})

    async def events(self, path, body, *, on_event=None, **headers):
        """The parsed events of a stream, and whether its end mark came."""
        found, ended = [], False
        async with self.http.post(self.url + path, json=body | {"stream": True}, headers=headers) as response:
            if response.status != 200:
                return response.status, await response.json()
            self.headers = response.headers
            async for line in response.content:
                if line == b"data: [DONE]\n":
                    ended = True
                elif line.startswith(b"data: "):
                    found.append(json.loads(line[6:]))
                    if on_event:
                        on_event(found)
        return found, ended

    def audited(self):
        return [json.loads(line) for line in self.audit.read_text().splitlines()]

    def ended(self):
        return [line for line in self.audited() if line["event"] == "ended"]

    def metric(self, name, **labels):
        return self.registry.get_sample_value(name, labels)

    def in_the_middle_on(self, rank):
        """Whether an answer on ``rank`` has some of its tokens."""
        carriers = (each for each in self.service.ranks.carriers if each.route and each.route.rank == rank)
        return any(len(each.generation.tokens) >= 5 for each in carriers)

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():  # what is waited for is in another process's hands
                await asyncio.sleep(0.01)


@pytest.fixture
def gateway(tmp_path, model):
    @asynccontextmanager
    async def start(*ranks, serving=None, **settings):
        config = msgspec.structs.replace(GatewayConfig(stall_s=0.3, no_rank_wait_s=0.5), **settings)
        registry, routes = CollectorRegistry(), Routes()
        metrics = GatewayMetrics(registry)
        path = tmp_path / "audit.jsonl"
        audit = Audit(path)
        async with Ranks(config, routes, metrics) as front, aiohttp.ClientSession() as http:
            admission = Admission(config.max_running, config.max_queued)
            service = Service(config, model, front, admission, audit, metrics)
            runner = web.AppRunner(
                Server(service, registry).application(), handler_cancellation=True, shutdown_timeout=0.2
            )
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            client = Client(url, routes, service, registry, path, http, ranks=list(ranks))
            client.serve(*(ranks if serving is None else serving))
            try:
                yield client
            finally:
                await runner.cleanup()
                audit.close()

    return start
