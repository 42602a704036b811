"""``eep-gateway``: the clients' front door, as a process."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from controlplane.etcd import EtcdClient
from controlplane.gateway.admission import Admission
from controlplane.gateway.audit import Audit
from controlplane.gateway.etcd_routes import EtcdRoutes
from controlplane.gateway.model import ModelError, ServedModel
from controlplane.gateway.ranks import Ranks
from controlplane.gateway.routes import Route, Routes, RouteTable
from controlplane.gateway.server import Server
from controlplane.gateway.service import Service
from controlplane.telemetry import GatewayMetrics, LogFormat, Notifier, Tracing, configure_logging
from schemas.config import Config, ConfigError, load_config
from schemas.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controlplane.gateway.routes import RouteSource

log = logging.getLogger(__name__)
_DRAIN_S = 30.0
"""After SIGTERM: time for running answers."""


class FixedRoutes:
    """A ``RouteSource`` of ranks that were named on the command line."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._table = RouteTable(epoch=1, routes=routes)

    async def run(self, routes: Routes) -> None:
        """Put them in force once."""
        routes.replace(self._table)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eep-gateway", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file, see deploy/eep.toml")
    parser.add_argument("--host", help="instead of [gateway] host")
    parser.add_argument("--port", type=int, help="instead of [gateway] port; 0 lets the system choose")
    parser.add_argument("--model", help="instead of [instance] model")
    parser.add_argument("--instance", help="instead of [instance] name")
    parser.add_argument("--etcd", action="append", metavar="URL", help="instead of [etcd] endpoints; may be repeated")
    parser.add_argument("--audit", type=Path, help="instead of [gateway] audit_file")
    parser.add_argument(
        "--rank", action="append", metavar="N=URL", help="serve these ranks, without etcd; may be repeated"
    )
    parser.add_argument("--port-file", type=Path, help="write the port here once it is open")
    parser.add_argument("--check", action="store_true", help="only check the settings")
    parser.add_argument("--log-format", choices=list(LogFormat), default=LogFormat.TEXT)
    return parser.parse_args(argv)


def _settings(options: argparse.Namespace) -> Config:
    """The file's settings with the command line's on top.

    Raises:
        ConfigError: the file is wrong.
    """
    config = load_config(options.config) if options.config else Config()
    instance = {"name": options.instance, "model": options.model}
    gateway = {
        "host": options.host,
        "port": options.port,
        "audit_file": str(options.audit) if options.audit else None,
    }
    etcd = {"endpoints": tuple(options.etcd) if options.etcd else None}
    return msgspec.structs.replace(
        config,
        instance=msgspec.structs.replace(config.instance, **_given(instance)),
        gateway=msgspec.structs.replace(config.gateway, **_given(gateway)),
        etcd=msgspec.structs.replace(config.etcd, **_given(etcd)),
    )


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def fixed(ranks: list[str]) -> FixedRoutes:
    """Routes from ``N=URL`` texts.

    Raises:
        ConfigError: one is not of that form.
    """
    found = []
    for text in ranks:
        match = re.fullmatch(r"(\d+)=(https?://\S+)", text)
        if match is None:
            raise ConfigError("command line", "--rank", text, "give N=URL, e.g. 0=http://127.0.0.1:30000")
        found.append(Route(rank=int(match[1]), incarnation=1, url=match[2].rstrip("/")))
    return FixedRoutes(tuple(found))


async def serve(config: Config, model: ServedModel, ranks: list[str], *, port_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let running answers end."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    notifier = Notifier()
    routes = Routes()
    async with AsyncExitStack() as stack:
        source: RouteSource = fixed(ranks) if ranks else await _from_etcd(stack, config)
        audit = Audit(Path(config.gateway.audit_file) if config.gateway.audit_file else None)
        stack.callback(audit.close)
        front = await stack.enter_async_context(Ranks(config.gateway, routes, metrics))
        admission = Admission(config.gateway.max_running, config.gateway.max_queued)
        service = Service(config.gateway, model, front, admission, audit, metrics)
        runner = web.AppRunner(
            Server(service, registry).application(),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=75.0,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, config.gateway.host, config.gateway.port, backlog=1024)
        await site.start()
        port = runner.addresses[0][1]
        following = asyncio.create_task(source.run(routes), name="gateway-routes")
        stack.callback(following.cancel)
        log.info("serving %s on http://%s:%d", model.name, config.gateway.host, port)
        if port_file is not None:
            _write(port_file, f"{port}\n")
        notifier.ready()
        await _until(stop, following)
        notifier.stopping()
        await admission.close(wait_s=_DRAIN_S)


async def _until(stop: asyncio.Event, following: asyncio.Task[None]) -> None:
    """Wait for ``stop``; a route source that failed for good ends the process instead."""
    waiting = asyncio.create_task(stop.wait(), name="gateway-stop")
    await asyncio.wait({waiting, following}, return_when=asyncio.FIRST_COMPLETED)
    if following.done() and not waiting.done():
        following.result()
        await waiting
    waiting.cancel()


async def _from_etcd(stack: AsyncExitStack, config: Config) -> EtcdRoutes:
    etcd = await stack.enter_async_context(EtcdClient(config.etcd))
    return EtcdRoutes(etcd, Keys(config.instance.name))


def _model(config: Config) -> ServedModel:
    if not config.instance.model:
        raise ConfigError("settings", "instance.model", "", "name the checkpoint's folder there or with --model")
    folder, gateway = Path(config.instance.model), config.gateway
    return ServedModel.load(folder, name=gateway.model_name, context_limit=gateway.context_tokens)


def _write(path: Path, text: str) -> None:
    """Write at once: a reader sees all or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Command line; 78 (EX_CONFIG) for settings that cannot be used."""
    options = _options(sys.argv[1:] if argv is None else argv)
    configure_logging(style=LogFormat(options.log_format))
    try:
        config = _settings(options)
        model = _model(config)
        ranks = options.rank or []
        fixed(ranks)
    except (ConfigError, ModelError) as error:
        print(f"eep-gateway: {error}", file=sys.stderr)  # noqa: T201  # a person is waiting at the terminal
        return 78
    if options.check:
        return 0
    tracing = Tracing.start(service="eep-gateway", instance_id=f"gateway-{os.getpid()}")
    try:
        gc.freeze()  # modules stay: a collection that walks them would be a gap in every stream
        asyncio.run(serve(config, model, ranks, port_file=options.port_file))
    finally:
        tracing.stop(deadline_s=2.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
