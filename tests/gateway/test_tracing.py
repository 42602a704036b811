"""A resumed request's span names the recovery that made it move. In a process of its own: the provider is global."""

import asyncio
import os
import sys

from tests.gateway.conftest import PROMPT
from tests.standin.rank import Rank, answer_of
from tests.telemetry.otlp_sink import otlp_sink

CAUSE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CLIENT = "00-1bf7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"
STORY = f"""
import asyncio, sys
import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry
from pathlib import Path
from controlplane.gateway.admission import Admission
from controlplane.gateway.audit import Audit
from controlplane.gateway.model import ServedModel
from controlplane.gateway.ranks import Ranks
from controlplane.gateway.routes import Route, Routes, RouteTable
from controlplane.gateway.server import Server
from controlplane.gateway.service import Service
from controlplane.telemetry import GatewayMetrics, Tracing
from schemas.config import GatewayConfig
from tools.models.random_moe import SHIPPED

async def main(first, second):
    config, registry, routes = GatewayConfig(), CollectorRegistry(), Routes()
    metrics = GatewayMetrics(registry)
    async with Ranks(config, routes, metrics) as ranks, aiohttp.ClientSession() as http:
        service = Service(config, ServedModel.load(SHIPPED), ranks, Admission(4, 4), Audit(Path(sys.argv[3])), metrics)
        runner = web.AppRunner(Server(service, registry).application(), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        routes.replace(RouteTable(1, (Route(0, 1, first),)))
        url = f"http://127.0.0.1:{{runner.addresses[0][1]}}/generate"
        body = {{"input_ids": {PROMPT}, "sampling_params": {{"max_new_tokens": 20, "temperature": 0}}}}
        asked = asyncio.create_task(http.post(url, json=body, headers={{"traceparent": "{CLIENT}"}}))
        while not any(len(each.generation.tokens) == 5 for each in ranks.carriers):
            await asyncio.sleep(0.01)
        routes.replace(RouteTable(2, (Route(1, 1, second),), "{CAUSE}"))
        print((await (await asked).json())["output_ids"])
        await runner.cleanup()

tracing = Tracing.start(service="eep-gateway", instance_id="g")
asyncio.run(main(*sys.argv[1:3]))
assert tracing.stop(deadline_s=10)
"""


async def test_a_resumed_requests_span_links_to_the_recovery_and_continues_the_clients_trace(tmp_path):
    async with otlp_sink() as sink, Rank(hang_at=5) as first, Rank() as second:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STORY, first.url, second.url, str(tmp_path / "audit"),
            env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 240)
        assert process.returncode == 0, err.decode()
        assert out.decode().strip() == str(answer_of(PROMPT, 20))
        (span,) = (span for span in sink.spans if span.name == "eep.request")
    assert span.links == ((CAUSE[3:35], CAUSE[36:52]),)
    assert span.trace_id == CLIENT[3:35]
    assert span.attributes["eep.resumed"] == 1
    assert span.attributes["eep.outcome"] == "completed"
