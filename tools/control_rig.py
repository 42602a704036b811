"""The control plane alone: real processes of it, and ranks without an engine that speak the agents' protocol to etcd.

For measurements and tests of the control plane; nothing here loads or computes anything.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from controlplane.etcd import OutcomeUnknownError, UnavailableError, Watch
from schemas.codec import decode, encode
from schemas.records import Ack, AckPhase, EpochRecord, FaultReport, Registration, Suspicion
from schemas.vocabulary import Evidence

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping
    from pathlib import Path

    from controlplane.etcd import Etcd, KeyValue
    from schemas.keys import Keys
    from schemas.vocabulary import Epoch, Rank

SLOTS, LAYERS, EXPERTS = 4, 2, 8
STOP_S = 20.0
AGAIN_S = 0.02


class BareRank:
    """A rank without an engine: it registers, follows the epoch and acknowledges at once what the record asks."""

    def __init__(
        self, etcd: Etcd, keys: Keys, rank: Rank, *, incarnation: int = 1, host: str = "", slots: int = SLOTS
    ) -> None:
        self.etcd, self.keys, self.rank, self.incarnation = etcd, keys, rank, incarnation
        self.host = host or f"host-{rank}"
        self.slots = slots
        self.lease = 0
        """Id of the lease that everything stands on; set it before ``register``."""
        self.record: EpochRecord | None = None
        self.heard_unix_ns = 0

    async def register(self) -> None:
        """Be ready to join."""
        registration = Registration(
            rank=self.rank,
            incarnation=self.incarnation,
            host=self.host,
            slots=self.slots,
            layers=LAYERS,
            experts=EXPERTS,
            expert_bytes=1000,
            model="m",
            checkpoint="c",
            ready=True,
        )
        await self._publish(self.keys.rank(self.rank), encode(registration))

    async def _publish(self, key: str, value: bytes) -> None:
        """Write until it stands, as an agent does: a write says all there is to say, so repeating it is harmless."""
        while True:
            try:
                await self.etcd.put(key, value, lease=self.lease)
            except (UnavailableError, OutcomeUnknownError):
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def follow(self) -> None:
        """Hear every epoch record, for ever."""
        async with aclosing(Watch(self.etcd, self.keys.epoch).changes()) as changes:
            async for change in changes:
                for event in change.events:
                    if event.item.value:
                        self.record = self.read(event.item)
                        self.heard_unix_ns = time.time_ns()
                        await self.heard(self.record)

    def read(self, item: KeyValue) -> EpochRecord:
        """The record that a delivery holds."""
        return decode(item.value, EpochRecord, key=item.key)

    async def heard(self, record: EpochRecord) -> None:
        """Do what the record asks of this rank."""
        versions = [record.committed, *([record.preparing] if record.preparing else [])]
        if not any((m.rank, m.incarnation) == (self.rank, self.incarnation) for v in versions for m in v.members):
            return
        if record.preparing is not None:
            await self.acknowledge(record.preparing.epoch, activated=False)
        else:
            await self.acknowledge(record.committed.epoch, activated=True)

    async def acknowledge(self, epoch: Epoch, *, activated: bool, loads: tuple[AckPhase, ...] = ()) -> None:
        """Say that the epoch is prepared, or that this rank has crossed into it."""
        ack = Ack(
            rank=self.rank,
            incarnation=self.incarnation,
            epoch=epoch,
            prepared=True,
            activated=activated,
            loads=loads,
            started_unix_ns=self.heard_unix_ns,
            finished_unix_ns=time.time_ns(),
        )
        await self._publish(self.keys.ack(epoch, self.rank), encode(ack))

    async def report(self, accused: Rank, *, incarnation: int = 1, evidence: Evidence = Evidence.DEAD) -> int:
        """Accuse a rank, oneself included; the moment just before it was sent, unix ns."""
        report = FaultReport(
            reporter=self.rank,
            incarnation=self.incarnation,
            epoch=self.record.committed.epoch if self.record else 0,
            suspicions=(Suspicion(accused, incarnation, evidence, "pidfd: exit 137"),),
            detected_unix_ns=time.time_ns() - 5_000_000,
        )
        sent = time.time_ns()
        await self.etcd.put(self.keys.report(self.rank), encode(report), lease=self.lease)
        return sent


class ReplicaProcess:
    """One ``python -m controlplane``; ``toml`` is its configuration but for ``[controlplane]``.

    Args:
        folder: where its configuration file goes, ``<name>.toml``.
        name: the replica's name.
        toml: every section but ``[controlplane]``.
        settings: lines of ``[controlplane]`` beside the port, which is a free one.
        environment: all of it; None for this process's own.
    """

    def __init__(
        self, folder: Path, name: str, toml: str, *, settings: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.process: asyncio.subprocess.Process | None = None
        self._config = folder / f"{name}.toml"
        self._config.write_text(f"{toml}\n[controlplane]\nport = {port}\n{settings}\n")
        self._environment = environment

    async def start(self) -> None:
        """Start it, again after it has ended if need be."""
        arguments = ("--config", str(self._config), "--replica", self.name, "--log-level", "ERROR")
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane", *arguments), env=self._environment
        )

    async def stop(self, number: signal.Signals) -> None:
        """Signal it if it runs, and wait for its end."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
