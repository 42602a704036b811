"""``eep-controlplane``: one replica of the control plane, i.e. the coordinator and the admin API in one process.

Stateless: everything stands in etcd, so replicas may be started, killed and replaced at will.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector

from controlplane.admin import Authentication, EtcdArchive, Role, Snapshot, TokenFile, make_app
from controlplane.coordinator.metering import Metering
from controlplane.coordinator.shell import Coordinator, Identity
from controlplane.etcd import EtcdClient, EtcdError, KeptLease
from controlplane.telemetry import ControlPlaneMetrics, LogFormat, Notifier, Tracing, configure_logging
from schemas.config import Config, ConfigError, load_config
from schemas.keys import Keys
from schemas.policy import Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.etcd import Lease
    from schemas.operations import Operation, Prediction

log = logging.getLogger("eep.controlplane")

EXIT_CONFIG = 78
"""EX_CONFIG: systemd must not restart it before the file is mended."""
EXIT_FAILED = 1
_STATUS_EVERY_S = 1.0
_WEDGED_S = 2.0
"""A loop that decides and did not go round for so long, beside the one call to etcd that it may be waiting for, gives
the leadership to a replica whose loop does."""
_SHUTDOWN_S = 5.0


def spec_of(config: Config) -> Spec:
    """The policy that the configuration asks for; written to etcd once, by the first leader."""
    fields = {name: getattr(config.policy, name) for name in config.policy.__struct_fields__}
    return Spec(**fields, max_ranks=config.instance.max_ranks)


@dataclass(frozen=True)
class CoordinatorReader:
    """``controlplane.admin.ports.Reader`` over a coordinator of this process."""

    coordinator: Coordinator

    def snapshot(self) -> Snapshot:
        """What this replica knows now."""
        view = self.coordinator.view
        state = view.state
        version = None
        if state.record is not None:
            version = state.record.preparing or state.record.committed
        acks = {rank: ack for (epoch, rank), ack in state.acks.items() if version and epoch == version.epoch}
        return Snapshot(
            instance=view.instance,
            replica=state.replica,
            revision=view.revision,
            connected=view.connected,
            leading=view.leading,
            leader=view.leader,
            fence=view.leader_fence,
            epoch=state.record,
            epoch_revision=view.epoch_revision,
            status=state.status,
            spec=state.spec,
            registrations=state.registrations,
            acks=acks,
            placement=state.live,
        )


@dataclass(frozen=True)
class CoordinatorPredictor:
    """``controlplane.admin.ports.Predictor``: planning takes milliseconds to a second, so it runs beside the loop."""

    coordinator: Coordinator

    async def predict(self, operation: Operation) -> Prediction:
        """What ``operation`` would do now."""
        return await asyncio.to_thread(self.coordinator.predict, operation)


def authentication(config: Config) -> Authentication:
    """Who may call, as configured; nothing configured leaves only health open."""
    settings = config.controlplane
    tokens = TokenFile(Path(settings.tokens_file)) if settings.tokens_file else None
    roles = {role.name.lower(): role for role in (Role.VIEWER, Role.OPERATOR)} if settings.client_ca_file else {}
    return Authentication(tokens=tokens, certificates=roles)


def tls(config: Config) -> ssl.SSLContext | None:
    """The server's TLS context; None to speak plain HTTP."""
    settings = config.controlplane
    if not settings.certificate_file:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=settings.client_ca_file or None)
    context.load_cert_chain(settings.certificate_file, settings.key_file or None)
    context.verify_mode = ssl.CERT_OPTIONAL if settings.client_ca_file else ssl.CERT_NONE
    return context


class Service:
    """One replica, from start to a graceful end."""

    def __init__(self, config: Config, *, replica: str) -> None:
        self._config = config
        self._replica = replica
        self._stop = asyncio.Event()
        self._notifier = Notifier()
        self.url = ""
        """Where the admin API answers, once it does."""

    def stop(self) -> None:
        """Hand over and end."""
        self._stop.set()

    async def run(self, *, bound: Callable[[str], None] = lambda _: None) -> None:
        """Serve until ``stop``; ``bound`` is told the admin API's URL.

        Raises:
            EtcdError: what time does not heal (permission, authentication, another cluster).
            OSError: the address is taken.
        """
        config, keys = self._config, Keys(self._config.instance.name)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        metrics = ControlPlaneMetrics(registry)
        tracing = Tracing.start(service="eep-controlplane", instance_id=self._replica)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, tracing.stop, deadline_s=_SHUTDOWN_S)
            etcd = await stack.enter_async_context(EtcdClient(config.etcd))
            listener = socket.create_server((config.controlplane.host, config.controlplane.port))
            scheme = "https" if config.controlplane.certificate_file else "http"
            self.url = f"{scheme}://{config.controlplane.host}:{listener.getsockname()[1]}"

            async def take_lease() -> Lease:
                return await KeptLease.take(
                    config.etcd,
                    ttl_s=config.controlplane.lease_ttl_s,
                    progress_deadline_s=_WEDGED_S + config.etcd.deadline_s,
                )

            coordinator = Coordinator(
                etcd=etcd,
                keys=keys,
                identity=Identity(replica=self._replica, admin_url=config.controlplane.advertise_url or self.url),
                take_lease=take_lease,
                spec=spec_of(config),
                metering=Metering(metrics),
            )
            app = make_app(
                reader=CoordinatorReader(coordinator),
                archive=EtcdArchive(etcd, keys),
                predictor=CoordinatorPredictor(coordinator),
                authentication=authentication(config),
                metrics=metrics,
                registry=registry,
            )
            # No access log: eep.audit tells of every change, with who and why.
            runner = web.AppRunner(app, shutdown_timeout=_SHUTDOWN_S, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.SockSite(runner, listener, ssl_context=tls(config)).start()
            bound(self.url)
            log.info("replica %s answers at %s", self._replica, self.url)
            await self._lead(coordinator)

    async def _lead(self, coordinator: Coordinator) -> None:
        running = asyncio.create_task(coordinator.run(), name="coordinator")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        saying = asyncio.create_task(self._say(coordinator), name="systemd")
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running  # raises what ended it
            self._notifier.stopping()
            async with asyncio.timeout(_SHUTDOWN_S):
                await coordinator.hand_over()
        except TimeoutError:
            log.warning("the write under way did not end in %g s; the lease's end hands over", _SHUTDOWN_S)
        finally:
            for task in (running, stopping, saying):
                task.cancel()
            await asyncio.gather(running, stopping, saying, return_exceptions=True)

    async def _say(self, coordinator: Coordinator) -> None:
        """Tell systemd what we do; the watchdog is fed only while the loop that decides goes round."""
        seen = -1
        await coordinator.followed_once()
        self._notifier.ready()
        every = min(self._notifier.watchdog_interval_s or _STATUS_EVERY_S, _STATUS_EVERY_S)
        while self._notifier.heard:
            if coordinator.rounds != seen:
                seen = coordinator.rounds
                self._notifier.alive()
            self._notifier.status(coordinator.view.summary)
            await asyncio.sleep(every)


def main() -> int:
    """Run one replica until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="eep-controlplane", description="One replica of the control plane.")
    parser.add_argument("--config", type=Path, help="TOML file; see schemas/eep.toml for every key")
    parser.add_argument("--replica", default="", help="this replica's name (default: host name and pid)")
    parser.add_argument("--log-format", choices=[style.value for style in LogFormat], default=LogFormat.TEXT.value)
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--check", action="store_true", help="only check the configuration")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config) if arguments.config else Config()
        configure_logging(style=LogFormat(arguments.log_format), level=arguments.log_level)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - before logging is configured
        return EXIT_CONFIG
    if arguments.check:
        return 0
    replica = arguments.replica or f"{socket.gethostname()}-{os.getpid()}"
    gc.freeze()  # modules stay: a collection that walks them would be a pause in the middle of a recovery
    return asyncio.run(_serve(config, replica))


async def _serve(config: Config, replica: str) -> int:
    service = Service(config, replica=replica)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    code = 0
    try:
        await service.run()
    except* (EtcdError, OSError) as errors:
        code = EXIT_FAILED
        for error in errors.exceptions:
            log.error("%s", error)  # noqa: TRY400 - its message says what to do
    return code


if __name__ == "__main__":
    sys.exit(main())
