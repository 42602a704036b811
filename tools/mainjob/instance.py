"""A whole instance on this machine: real etcd, control planes, gateways, agents with their engines."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import aiohttp
import psutil

from controlplane.etcd import EtcdClient
from schemas.codec import decode
from schemas.config import EtcdConfig
from schemas.keys import Keys
from schemas.records import EpochRecord, Registration
from tools.etcd.local import LocalEtcd, free_ports
from tools.mainjob.collector import Collector
from tools.mainjob.processes import Household
from worker.engine.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from schemas.vocabulary import Rank
    from tools.mainjob.processes import Program

SHIPPED_MODEL = Path(__file__).parents[1] / "models" / "sprout"
FIRST_LOSS_POLICY = {"flap_limit": 1000, "backoff_s": 0.1}
FIRST_LOSS_WORKER = {"longest_backoff_s": 0.2}
"""Settings with which every loss of a rank is treated like its first: for who kills the same ones again and again."""
_POLL_S = 0.05
_PREFILL_TOKENS = 64
"""Longest prefill of one step. Ranks step together, so every client waits for a prefill, and after a fault the lost
rank's requests are read anew: with up to 300 tokens of them in one step it took as long as the recovery before it."""


class InstanceError(RuntimeError):
    """The instance did not come to the state that was waited for; the message says what was seen instead."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to start.

    Attributes:
        ranks: how many ranks.
        spare: expert slots beyond one copy of every expert, as a share of all experts.
        model: the checkpoint's folder.
        etcd: members of etcd, 1 or 3.
        controlplanes: replicas.
        gateways: how many.
        transfer_s: a returning rank's load takes at least this long, 0 for as long as it takes.
        worker: more settings of ``[worker]``.
        policy: more settings of ``[policy]``.
    """

    ranks: int = 4
    spare: float = 0.5
    model: Path = SHIPPED_MODEL
    etcd: int = 1
    controlplanes: int = 2
    gateways: int = 1
    transfer_s: float = 0.0
    worker: dict[str, str | int | float | bool] = field(default_factory=dict)
    policy: dict[str, str | int | float | bool] = field(default_factory=dict)


class Instance:
    """Started by ``async with``; everything is gone at its end.

    Attributes:
        plan: what was started.
        folder: configuration and logs; removed with the rest unless ``keep``.
        gateway_urls: clients' addresses.
        admin_urls: operators' addresses, one for each control plane.
        token: an operator's bearer token.
    """

    def __init__(self, plan: Plan, *, keep: bool = False, traces: str = "") -> None:
        """Lay out folders and ports; start nothing yet. ``traces`` is where a collector sends them, empty for none."""
        self.plan = plan
        self._collector = Collector(forward_to=traces) if traces else None
        self.keep = keep
        _clear_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=f"eep-{os.getpid()}-", dir=_memory_folder()))
        self.keys = Keys("demo")
        self.token = secrets.token_urlsafe(24)
        self.local_etcd = LocalEtcd(members=plan.etcd)
        self.household = Household(self.folder / "logs")
        ports = free_ports(plan.controlplanes + plan.gateways)
        self._admin_ports, self._gateway_ports = ports[: plan.controlplanes], ports[plan.controlplanes :]
        self.admin_urls = [f"http://127.0.0.1:{port}" for port in self._admin_ports]
        self.gateway_urls = [f"http://127.0.0.1:{port}" for port in self._gateway_ports]
        self.etcd = EtcdClient(EtcdConfig(endpoints=self.local_etcd.endpoints))

    async def __aenter__(self) -> Self:
        """Start everything. From now on SIGTERM cancels the task that asked, so that everything is ended then, too."""
        if (starter := asyncio.current_task()) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _cancel_once, starter)
        try:
            self._write_tokens()
            self.model.symlink_to(self.plan.model.resolve())
            self.household.__enter__()
            if self._collector is not None:
                self.household.start("collector", self._collector.command)
            await asyncio.to_thread(self._start_etcd)
            await self.etcd.__aenter__()
            for index in range(self.plan.controlplanes):
                self.start_controlplane(index)
            for index in range(self.plan.gateways):
                self.start_gateway(index)
            for rank in range(self.plan.ranks):
                self.start_rank(rank)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        await self.etcd.close()
        await asyncio.to_thread(self.household.end)
        shutil.rmtree(self.local_etcd.folder, ignore_errors=True)
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- starting things ----------------------------------------------------------------------------------------------

    def _start_etcd(self) -> None:
        for member in self.local_etcd.members:
            self.household.start(f"etcd-{member.name}", member.command)
        for member in self.local_etcd.members:
            self.local_etcd.wait(member)

    def start_controlplane(self, index: int) -> Program:
        """Start a replica of the control plane."""
        replica = chr(ord("a") + index)
        return self.household.python(
            f"controlplane-{replica}",
            "controlplane.service",
            *("--replica", replica),
            *(
                "--config",
                str(self._settings(f"controlplane-{replica}", "controlplane", port=self._admin_ports[index])),
            ),
            environment=self._tracing(),
        )

    def start_gateway(self, index: int) -> Program:
        """Start a gateway."""
        return self.household.python(
            f"gateway-{index}",
            "controlplane.gateway.main",
            *("--config", str(self._settings(f"gateway-{index}", "gateway", port=self._gateway_ports[index]))),
            environment=self._tracing(),
        )

    def start_rank(self, rank: Rank) -> Program:
        """Start a rank's agent, which starts its engine."""
        return self.household.python(
            f"rank-{rank}",
            "worker",
            *("--config", str(self._settings(f"rank-{rank}", "worker")), "--rank", str(rank)),
            environment={**self._tracing(), "OMP_NUM_THREADS": "1"},
        )

    def _tracing(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self._collector.url} if self._collector else {}

    def _settings(self, name: str, section: str, **values: object) -> Path:
        """Write one program's configuration file: the instance's, with some values of one section of its own."""
        sections: dict[str, dict[str, object]] = {
            "instance": {
                "name": self.keys.instance,
                "model": str(self.model),
                "max_ranks": max(8, self.plan.ranks),
                "slots_per_rank": slots_per_rank(self.plan),
                "run_dir": str(self.folder),
            },
            "etcd": {"endpoints": list(self.local_etcd.endpoints)},
            "policy": {
                "ranks": self.plan.ranks,
                "form_wait_s": 60.0,
                "survivability": "rank" if self.plan.spare >= 1 else "none",
                **self.plan.policy,
            },
            "controlplane": {"tokens_file": str(self._tokens)},
            "gateway": {"audit_file": str(self.audit)},
            "worker": {
                "host": "localhost",
                "stop_deadline_s": 1.0,  # at the end every rank asks to be drained, and none can be
                "chunked_prefill": _PREFILL_TOKENS,
                **_paced(self.plan),
                **self.plan.worker,
            },
        }
        sections[section] |= values
        path = self.folder / f"{name}.toml"
        path.write_text("\n".join(_toml(title, settings) for title, settings in sections.items()))
        return path

    @property
    def model(self) -> Path:
        """The checkpoint as the instance's programs see it: a link, so that it can be taken away from them."""
        return self.folder / "model"

    @property
    def audit(self) -> Path:
        """Where the gateways write how each request ended."""
        return self.folder / "audit.jsonl"

    @property
    def _tokens(self) -> Path:
        return self.folder / "tokens"

    def _write_tokens(self) -> None:
        self._tokens.touch(mode=0o600)
        self._tokens.write_text(f"operator demo {self.token}\n")

    # --- looking at it ------------------------------------------------------------------------------------------------

    async def epoch(self) -> EpochRecord | None:
        """The epoch record, None before the first."""
        found = (await self.etcd.get(self.keys.epoch)).only
        return decode(found.value, EpochRecord, key=found.key) if found else None

    async def registrations(self) -> dict[Rank, Registration]:
        """Who is registered."""
        listing = await self.etcd.get(self.keys.ranks)
        found = [decode(item.value, Registration, key=item.key) for item in listing]
        return {registration.rank: registration for registration in found}

    async def wait(
        self, look: Callable[[EpochRecord | None, dict[Rank, Registration]], bool], *, what: str, within_s: float
    ) -> None:
        """Wait until the cluster looks as asked.

        Raises:
            InstanceError: it did not in time; says how it looked.
            ProcessEndedError: a program that should run has ended.
        """
        until = time.monotonic() + within_s
        while True:
            record, registrations = await self.epoch(), await self.registrations()
            if look(record, registrations):
                return
            if time.monotonic() > until:
                seen = f"epoch {record.committed.epoch if record else 'none'}, ready {_ready(registrations)}"
                raise InstanceError(f"no {what} within {within_s:.0f} s; seen: {seen}; logs: {self.household.folder}")
            self.check()
            await asyncio.sleep(_POLL_S)

    async def wait_members(self, ranks: set[Rank], *, within_s: float) -> None:
        """Wait until the committed epoch has exactly these ranks, and all run under it."""

        def look(record: EpochRecord | None, registrations: dict[Rank, Registration]) -> bool:
            if record is None or record.preparing or {member.rank for member in record.committed.members} != ranks:
                return False
            current = record.committed.placement
            return all(rank in registrations and registrations[rank].holds == current for rank in ranks)

        await self.wait(look, what=f"epoch with ranks {sorted(ranks)}", within_s=within_s)

    def check(self) -> None:
        """Raise ``ProcessEndedError`` for a program that has ended without being told to."""
        for program in self.household.programs.values():
            program.check()

    async def gateways_ready(self, *, within_s: float) -> None:
        """Wait until every gateway would take a request."""
        async with aiohttp.ClientSession() as session, asyncio.timeout(within_s):
            for url in self.gateway_urls:
                while not await _answers(session, f"{url}/ready"):
                    await asyncio.sleep(_POLL_S)

    def rank_processes(self, rank: Rank) -> list[psutil.Process]:
        """What the rank's agent has started: its engine's processes, and the keeper of its lease."""
        agent = psutil.Process(self.household.programs[f"rank-{rank}"].pid)
        return [child for child in agent.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]

    def engine_log(self, rank: Rank) -> str:
        """What the rank's present (or last) engine has written."""
        logs = self.folder.glob(f"**/engine-{rank}-*.log")
        return max(logs, key=lambda log: log.stat().st_mtime_ns).read_text(errors="replace")

    def server(self, rank: Rank) -> psutil.Process:
        """The engine's main process, which serves HTTP."""
        return self._running("sglang::server", rank)

    def scheduler(self, rank: Rank) -> psutil.Process:
        """The process that holds the model: its death is the rank's death."""
        return self._running("sglang::scheduler", rank)

    def keeper(self, rank: Rank) -> psutil.Process:
        """The process that keeps the lease of the rank's agent."""
        return self._running("controlplane.etcd.keeper", rank)

    def _running(self, what: str, rank: Rank) -> psutil.Process:
        """The one that has this name, or runs this module."""
        for process in self.rank_processes(rank):
            if process.name() == what or what in process.cmdline():
                return process
        raise InstanceError(f"rank {rank} has no process {what} now")


def slots_per_rank(plan: Plan) -> int:
    """Slots so that all ranks together have the spare share, and one rank's loss leaves a slot for every expert."""
    experts = _experts(plan.model)
    survivors = max(plan.ranks - 1, 1)
    return max(-(-round(experts * (1 + plan.spare)) // plan.ranks), -(-experts // survivors))


def _experts(model: Path) -> int:
    return Checkpoint(model).n_experts


def _paced(plan: Plan) -> dict[str, float]:
    """A limit under which a rank's slots take ``transfer_s`` to fill."""
    if not plan.transfer_s:
        return {}
    checkpoint = Checkpoint(plan.model)
    slots = len(checkpoint.layers) * slots_per_rank(plan)
    return {"background_mb_per_s": slots * checkpoint.shape("float32").nbytes / plan.transfer_s / 1e6}


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def _ready(registrations: dict[Rank, Registration]) -> list[Rank]:
    return sorted(rank for rank, registration in registrations.items() if registration.ready)


def _toml(name: str, values: dict[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {_toml_value(value)}\n" for key, value in values.items())


def _toml_value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "[" + ", ".join(map(_toml_value, value)) + "]"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _memory_folder() -> Path:
    shared = Path("/dev/shm")  # noqa: S108  tmpfs on every Linux: sockets, control blocks and the backup belong in memory
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _cancel_once(task: asyncio.Task[object]) -> None:
    """timeout(1) sends SIGTERM twice; a second cancellation would break off the end of what the first one ends."""
    if not task.cancelling():
        task.cancel()


def _clear_abandoned() -> None:
    """Remove the folders of main jobs that were killed: the name carries their process id."""
    for folder in _memory_folder().glob("eep-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
