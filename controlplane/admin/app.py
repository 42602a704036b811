"""The route table, and the application it makes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from controlplane.admin import requests
from controlplane.admin.auth import Role
from controlplane.admin.contract import openapi
from controlplane.admin.decoding import MAX_BODY
from controlplane.admin.events import Streams
from controlplane.admin.health import Health
from controlplane.admin.middleware import authorized, observed, problems
from controlplane.admin.mutations import Mutations
from controlplane.admin.queries import Queries
from controlplane.admin.sglang import Sglang
from controlplane.admin.submission import Operations
from controlplane.dashboard import page
from controlplane.telemetry import metrics_handler
from schemas.operations import OperationKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

    from controlplane.admin.auth import Authentication
    from controlplane.admin.ports import Archive, Predictor, Reader
    from controlplane.telemetry import ControlPlaneMetrics

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """One line of the table: who may do what, where."""

    role: Role
    method: str
    path: str
    handler: Handler


def _read_routes(queries: Queries, streams: Streams, sglang: Sglang) -> list[Route]:
    table = {
        "/v1/cluster": queries.cluster,
        "/v1/ranks": queries.ranks,
        "/v1/ranks/{rank}": queries.rank,
        "/v1/operations": queries.operations,
        "/v1/operations/{id}": queries.operation,
        "/v1/epochs": queries.epochs,
        "/v1/epochs/{epoch}": queries.epoch,
        "/v1/recoveries": queries.recoveries,
        "/v1/recoveries/{id}": queries.recovery,
        "/v1/events": streams.follow,
        "/is_scaling_elastic_ep": sglang.is_scaling,
    }
    return [Route(Role.VIEWER, "GET", path, handler) for path, handler in table.items()]


def _mutation_routes(mutations: Mutations, sglang: Sglang) -> list[Route]:
    rank, host, instance = mutations.on_rank, mutations.on_host, mutations.on_instance
    lending: type[requests.Body] = requests.Lend | requests.Reclaim  # type: ignore[assignment]
    notice: type[requests.Body] = requests.RankNotice | requests.HostNotice  # type: ignore[assignment]
    table = {
        "/v1/ranks/{rank}:drain": rank(OperationKind.DRAIN, requests.Reasoned),
        "/v1/ranks/{rank}:cordon": rank(OperationKind.CORDON, requests.Reasoned),
        "/v1/ranks/{rank}:uncordon": rank(OperationKind.UNCORDON, requests.Remarked),
        "/v1/ranks/{rank}:rejoin": rank(OperationKind.REJOIN, requests.Remarked),
        "/v1/ranks/{rank}:replace": rank(OperationKind.REPLACE, requests.Replace),
        "/v1/hosts/{host}:drain": host(OperationKind.DRAIN, requests.Reasoned),
        "/v1/scale": instance(OperationKind.SCALE, requests.Scale),
        "/v1/rebalance": instance(OperationKind.REBALANCE, requests.Rebalance),
        "/v1/loans": instance(OperationKind.LEND, lending),
        "/v1/notices": instance(OperationKind.NOTICE, notice),
        "/v1/pause": instance(OperationKind.PAUSE, requests.Pause),
        "/v1/resume": instance(OperationKind.RESUME, requests.Remarked),
        "/v1/operations/{id}:rollback": mutations.rollback,
        "/scale_elastic_ep": sglang.scale,
    }
    routes = [Route(Role.OPERATOR, "POST", path, handler) for path, handler in table.items()]
    return [*routes, Route(Role.OPERATOR, "DELETE", "/v1/operations/{id}", mutations.cancel)]


def _open_routes(health: Health) -> list[Route]:
    """Needs no token: health, and the dashboard's page, which holds no data until it is given one."""
    return [
        Route(Role.NOBODY, "GET", "/", page),
        Route(Role.NOBODY, "GET", "/livez", health.live),
        Route(Role.NOBODY, "GET", "/readyz", health.ready),
        Route(Role.NOBODY, "GET", "/leader", health.leader),
    ]


def routes(
    *, reader: Reader, archive: Archive, predictor: Predictor, registry: CollectorRegistry, streams: Streams
) -> list[Route]:
    """Every route; ``schemas/openapi.yaml`` describes exactly these."""
    operations = Operations(reader=reader, archive=archive, predictor=predictor)
    queries = Queries(reader=reader, archive=archive, operations=operations)
    mutations = Mutations(reader=reader, archive=archive, operations=operations)
    sglang = Sglang(reader=reader, archive=archive, operations=operations)
    return [
        *_open_routes(Health(reader)),
        *_read_routes(queries, streams, sglang),
        *_mutation_routes(mutations, sglang),
        Route(Role.VIEWER, "GET", "/metrics", metrics_handler(registry)),
        Route(Role.VIEWER, "GET", "/openapi.json", openapi),
    ]


def _pattern(path: str) -> str:
    """A contract's path as the router's: a parameter ends at a colon, or ``{rank}`` would swallow ``:drain``."""
    return re.sub(r"\{(\w+)\}", r"{\1:[^/:]+}", path)


def make_app(
    *,
    reader: Reader,
    archive: Archive,
    predictor: Predictor,
    authentication: Authentication,
    metrics: ControlPlaneMetrics,
    registry: CollectorRegistry,
) -> web.Application:
    """The admin application, to be served by itself.

    Args:
        reader: the state as this replica sees it.
        archive: operations, epochs, recoveries and changes in etcd.
        predictor: the leader's planner, for dry runs and for refusing harm.
        authentication: who may call.
        metrics: this process's metrics.
        registry: where they, and any others of the process, are registered.
    """
    streams = Streams(reader=reader, archive=archive)
    table = routes(reader=reader, archive=archive, predictor=predictor, registry=registry, streams=streams)
    roles = {route.handler: route.role for route in table}
    app = web.Application(
        client_max_size=MAX_BODY, middlewares=[observed(metrics), problems, authorized(authentication, roles)]
    )
    app.on_shutdown.append(streams.close)
    for route in table:
        app.router.add_route(route.method, _pattern(route.path), route.handler)
    return app
