"""``schemas/openapi.yaml`` is the contract: valid, equal to routes and structs, and kept by the live server."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestServer
from openapi_spec_validator import validate
from prometheus_client import CollectorRegistry

from controlplane.admin import requests, routes, views
from controlplane.admin.contract import document
from tests.admin.instance import OPERATOR

METHODS = {"get", "post", "delete", "put", "patch"}
STRUCTS = [
    requests.Remarked,
    requests.Reasoned,
    requests.Replace,
    requests.Scale,
    requests.Rebalance,
    requests.Lend,
    requests.Reclaim,
    requests.RankNotice,
    requests.HostNotice,
    requests.Pause,
    requests.ScaleElasticEp,
    views.Cluster,
    views.RankRow,
    views.OperationRow,
    views.EpochRow,
    views.RecoveryRow,
    views.Forecast,
]


def operations():
    for path, item in document()["paths"].items():
        for method in METHODS & item.keys():
            yield method.upper(), path, item[method]


def test_the_contract_is_valid_openapi():
    validate(document())


def test_every_route_is_in_the_contract_and_every_path_of_it_is_a_route(instance):
    table = routes(reader=instance, archive=instance.archive, predictor=instance, registry=CollectorRegistry())
    served = sorted((route.method, route.path) for route in table)
    assert served == sorted((method, path) for method, path, _ in operations())
    assert len(set(served)) == len(served)


def test_the_contract_says_which_routes_need_no_token(instance):
    table = routes(reader=instance, archive=instance.archive, predictor=instance, registry=CollectorRegistry())
    open_routes = {route.path for route in table if not route.role}
    assert {path for _, path, operation in operations() if operation.get("security") == []} == open_routes


def test_the_schemas_are_those_of_the_structs():
    _, derived = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
    written = document()["components"]["schemas"]
    derived = json.loads(json.dumps(derived))  # tuples as the lists that YAML has
    assert {name: written.get(name) for name in derived} == derived
    assert written.keys() - derived.keys() == {"Problem", "Change"}


def test_every_operation_is_named_once_and_summed_up():
    identities = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(identities)) == len(identities)
    assert all(operation["summary"] for _, _, operation in operations())


async def test_the_live_server_serves_the_contract(api):
    assert await (await api.get("/openapi.json")).json() == document()


SETTINGS = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.timeout(280)
async def test_schemathesis_finds_nothing(instance, tmp_path):
    async with TestServer(instance.app(tmp_path)) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "schemathesis.cli", "--config-file", str(SETTINGS)),
            *("run", str(server.make_url("/openapi.json"))),
            *("--header", f"Authorization: Bearer {OPERATOR}"),
            *("--exclude-path", "/v1/events"),  # an endless stream: tests/admin/test_events.py
            *("--max-examples", "12", "--seed", "7", "--request-timeout", "10", "--no-color"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), 270)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0, out.decode()
