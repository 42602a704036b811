"""``schemas/openapi.yaml`` is the contract: valid, equal to routes and structs, and kept by the live server."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from pathlib import Path

import msgspec
import pytest
from openapi_spec_validator import validate

from controlplane.admin import requests, views
from controlplane.admin.contract import document
from schemas.keys import Keys
from tests.admin.instance import table_of
from tests.admin.running import TOKEN, running

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
    table = table_of(instance)
    served = sorted((route.method, route.path) for route in table)
    assert served == sorted((method, path) for method, path, _ in operations())
    assert len(set(served)) == len(served)


def test_the_contract_says_which_routes_need_no_token(instance):
    table = table_of(instance)
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
async def test_schemathesis_finds_nothing_in_a_running_instance(one_etcd, tmp_path):
    keys = Keys(f"t{uuid.uuid4().hex[:12]}")
    async with running(tmp_path, one_etcd.endpoints[0], keys, replicas=1) as running_instance:
        leader = await running_instance.leader()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "schemathesis.cli", "--config-file", str(SETTINGS)),
            *("run", f"{leader.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {TOKEN}"),
            *("--exclude-path", "/v1/events"),  # an endless stream: tests/admin/test_events.py
            *("--max-examples", "8", "--seed", "7", "--request-timeout", "20", "--no-color"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), 240)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0, out.decode()
