"""The host-memory backup: a share of all experts that every rank of this host can load at memory speed.

One agent per host keeps it: whoever holds the lock file; when it dies the next one takes over. Which experts a host
keeps follows from its place among all hosts, so that the shares overlap evenly and, from a share of 2 ÷ hosts on, the
loss of one host never takes the only copy.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.records import Backup
from worker.engine.backup import write_backup
from worker.engine.checkpoint import Checkpoint
from worker.engine.errors import EngineError
from worker.engine.manifest import obtain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schemas.config import Config
    from schemas.vocabulary import Expert, Layer, Rank

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""How often an agent without the lock tries for it."""


def host_share(
    *, layers: int, experts: int, host: str, hosts: Sequence[str], share: float
) -> tuple[tuple[Layer, Expert], ...]:
    """The (layer, expert) pairs that ``host`` keeps.

    All pairs lie on a circle; host h of H keeps the arc of length ``share`` that begins at h ÷ H. Every pair is then
    kept by ⌊share × H⌋ hosts or one more.

    Raises:
        ValueError: ``host`` is not one of ``hosts``.
    """
    if host not in hosts:
        raise ValueError(f"[worker] backup_hosts = {list(hosts)}: this host is {host!r}; add it, or set [worker] host")
    total = layers * experts
    first = total * hosts.index(host) // len(hosts)
    length = min(total, math.ceil(total * share - 1e-9))  # up: rounding must not leave a gap between two arcs
    return tuple(sorted(divmod((first + i) % total, experts) for i in range(length)))


class HostBackup:
    """This host's backup as one of its agents sees it."""

    def __init__(self, *, config: Config, rank: Rank, host: str, publish: Callable[[Backup], None]) -> None:
        """Args: ``publish`` lets a record stand on the rank's lease."""
        self._config = config
        self._rank = rank
        self._host = host
        self._publish = publish
        self._run_dir = Path(config.instance.run_dir)

    async def keep(self) -> None:
        """Wait for the lock, make the file, publish it, and hold the lock for life."""
        if not self._config.worker.backup_share:
            return
        with (self._run_dir / "backup.lock").open("w") as lock:
            while not _locked(lock.fileno()):
                await asyncio.sleep(_LOOK_S)
            try:
                record = await asyncio.to_thread(self._make)
            except (EngineError, OSError, ValueError) as error:
                log.error("rank %d: no host backup: %s", self._rank, error)  # noqa: TRY400  the message is the whole story
                return
            self._publish(record)
            log.info(
                "rank %d: host %s keeps %d experts in %s", self._rank, self._host, len(record.experts), record.address
            )
            await asyncio.Event().wait()

    def _make(self) -> Backup:
        instance, worker = self._config.instance, self._config.worker
        checkpoint = Checkpoint(Path(instance.model))
        manifest = obtain(checkpoint, worker.dtype, self._run_dir / "manifest")
        kept = host_share(
            layers=len(checkpoint.layers),
            experts=checkpoint.n_experts,
            host=self._host,
            hosts=worker.backup_hosts or (self._host,),
            share=worker.backup_share,
        )
        path = self._run_dir / "backup.experts"
        write_backup(path, checkpoint, manifest, kept)
        return Backup(rank=self._rank, host=self._host, address=str(path), experts=kept)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
