"""``eep-worker``: one rank's agent, which starts and keeps its engine."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry

from controlplane.etcd import EtcdClient, KeptLease
from controlplane.telemetry import LogFormat, Notifier, Tracing, WorkerMetrics, configure_logging, metrics_handler
from schemas.config import Config, ConfigError, load_config
from schemas.keys import Keys
from schemas.records import Registration
from worker.agent.backup import HostBackup
from worker.agent.core import Policy, State
from worker.agent.engine import Engine
from worker.agent.epochs import EpochFollower
from worker.agent.shell import Agent
from worker.agent.story import Story

if TYPE_CHECKING:
    from schemas.vocabulary import Rank

EX_CONFIG = 78


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="eep-worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the instance's settings (TOML)")
    parser.add_argument("--rank", type=int, required=True, help="the rank to fill, 0 … max_ranks − 1")
    parser.add_argument("--check", action="store_true", help="check settings and checkpoint, start nothing")
    parser.add_argument("--log", choices=[str(style) for style in LogFormat], default=str(LogFormat.TEXT))
    return parser


def check(config: Config, rank: Rank, *, source: str) -> None:
    """Find what cannot work before anything is started.

    Raises:
        ConfigError: names the setting.
    """
    instance = config.instance
    if not 0 <= rank < instance.max_ranks:
        raise ConfigError(
            source,
            "--rank",
            rank,
            f"ranks are 0 … {instance.max_ranks - 1}; take one of them or raise instance.max_ranks",
        )
    if not (Path(instance.model) / "config.json").is_file():
        raise ConfigError(source, "instance.model", instance.model, "has no config.json; name a checkpoint's folder")
    run_dir = Path(instance.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            source, "instance.run_dir", str(run_dir), f"{error.strerror}; name a writable folder"
        ) from error
    if not os.access(run_dir, os.W_OK):
        raise ConfigError(source, "instance.run_dir", str(run_dir), "is not writable; name a writable folder on tmpfs")
    longest = len(str(run_dir / f"rank-{instance.max_ranks - 1}" / "link-9999999999999.sock"))
    if longest > 107:  # sun_path
        remedy = f"sockets below it would have paths of {longest} bytes, and the system takes 107; name a shorter path"
        raise ConfigError(source, "instance.run_dir", str(run_dir), remedy)


async def work(config: Config, rank: Rank) -> str:
    """Fill the rank until it is asked to go; why it went."""
    keys, worker = Keys(config.instance.name), config.worker
    host = worker.host or socket.gethostname()
    registry = CollectorRegistry()
    folder = Path(config.instance.run_dir) / f"rank-{rank}"
    async with EtcdClient(config.etcd) as etcd:
        engine = Engine(config=config, rank=rank, folder=folder)
        agent = Agent(
            state=State(
                identity=Registration(
                    rank=rank,
                    incarnation=0,
                    host=host,
                    rack=worker.rack,
                    agent_pid=os.getpid(),
                    speed=worker.speed,
                    best_effort=worker.best_effort,
                ),
                policy=Policy(first_backoff_s=worker.first_backoff_s, longest_backoff_s=worker.longest_backoff_s),
            ),
            etcd=etcd,
            keys=keys,
            engine=engine,
            take_lease=partial(
                KeptLease.take,
                config.etcd,
                ttl_s=worker.lease_ttl_s,
                progress_deadline_s=worker.progress_deadline_s,
            ),
            follow=EpochFollower(etcd, keys, rank).follow,
            story=Story(WorkerMetrics(registry)),
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, partial(agent.leave, number.name, deadline_s=worker.stop_deadline_s))
        backup = HostBackup(config=config, rank=rank, host=host, publish=agent.publish)
        notifier = Notifier()
        metrics = await _serve_metrics(registry, worker.metrics_port + rank if worker.metrics_port else None)
        await engine.open(agent.heard)
        notifier.ready()
        keeping = asyncio.create_task(backup.keep(), name="host backup")
        try:
            return await agent.run()
        finally:
            notifier.stopping()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await engine.close()
            await metrics.cleanup()


async def _serve_metrics(registry: CollectorRegistry, port: int | None) -> web.AppRunner:
    app = web.Application()
    app.router.add_get("/metrics", metrics_handler(registry))
    runner = web.AppRunner(app)
    await runner.setup()
    if port is not None:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


def main(argv: list[str] | None = None) -> int:
    """Run; 0 after a farewell, 78 (EX_CONFIG) for settings that cannot work."""
    options = arguments().parse_args(argv)
    configure_logging(style=LogFormat(options.log))
    try:
        config = load_config(options.config)
        check(config, options.rank, source=str(options.config))
    except ConfigError as error:
        sys.stderr.write(f"eep-worker: {error}\n")
        return EX_CONFIG
    if options.check:
        sys.stdout.write(
            f"eep-worker: rank {options.rank} of {config.instance.name!r}: settings and checkpoint are usable\n"
        )
        return 0
    tracing = Tracing.start(service="eep-worker", instance_id=f"{config.instance.name}-{options.rank}")
    try:
        gc.freeze()  # modules stay: a collection that walks them would be a pause in the middle of a recovery
        sys.stdout.write(f"eep-worker: {asyncio.run(work(config, options.rank))}\n")
        return 0
    finally:
        tracing.stop(deadline_s=2.0)


if __name__ == "__main__":
    sys.exit(main())
