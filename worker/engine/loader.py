"""Fills slots: sources in the order given, every result verified, the next source on any failure."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from schemas.messages import Load, Source
from schemas.placement import EMPTY
from schemas.records import AckPhase
from schemas.vocabulary import SourceTier
from worker.engine.backup import BackupFile
from worker.engine.errors import CheckpointError, NoSourceError, PrepareError, SourceError
from worker.engine.slots import expert_checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from schemas.vocabulary import Expert, Layer, Rank
    from worker.engine.checkpoint import Checkpoint
    from worker.engine.manifest import Manifest
    from worker.engine.slots import SlotMemory, SlotStore

log = logging.getLogger("eep.engine")

_ANYWHERE = (Source(tier=SourceTier.CHECKPOINT),)
_NAP_S = 0.02
"""A transfer that is held back looks this often whether it is still wanted."""


@dataclass
class _Spent:
    slots: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class Loader:
    """Reads experts for one engine; used by one thread.

    Attributes:
        store: our slots.
        manifest: what every expert's bytes must sum to.
        checkpoint: the last resort; None when this host has none.
        peer_memory: a live peer's slots, or None when it is not linked or not alive.
        clock: seconds.
        sleep: for so many seconds.
    """

    store: SlotStore
    manifest: Manifest
    checkpoint: Checkpoint | None
    peer_memory: Callable[[Rank], SlotMemory | None]
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    backups: dict[str, BackupFile] = field(default_factory=dict)

    def wanted(self, target: npt.NDArray[np.uint16], loads: Iterable[Load]) -> list[Load]:
        """What our slots lack of ``target`` [layers, slots]; sources as given, else the checkpoint."""
        given = {(load.layer, load.slot): load for load in loads}
        todo = np.argwhere((target != EMPTY) & (target != self.store.held))
        result = []
        for layer, slot in todo.tolist():
            expert = int(target[layer, slot])
            load = given.get((layer, slot))
            if load is None or load.expert != expert:
                load = Load(layer=layer, slot=slot, expert=expert, sources=_ANYWHERE)
            result.append(load)
        return result

    def run(
        self, loads: Sequence[Load], *, go_on: Callable[[], bool], bytes_per_s: float = 0.0
    ) -> tuple[AckPhase, ...]:
        """Fill every slot named; bytes and time by the tier that gave them.

        Args:
            loads: what to fill.
            go_on: asked before each slot; False gives up (a newer epoch came, or the deadline passed).
            bytes_per_s: no more than this, so that serving keeps the memory's bandwidth; 0 for no limit.

        Raises:
            LiveSlotError: a table references one of the slots.
            NoSourceError: names every expert that no source gave; the others are loaded.
            PrepareError: given up.
        """
        spent: dict[SourceTier, _Spent] = {}
        failures: list[tuple[Layer, Expert, str]] = []
        told: set[str] = set()
        began, size = self.clock(), self.store.memory.layout.expert.nbytes
        for done, load in enumerate(loads):
            self._hold_back(until=began + done * size / bytes_per_s if bytes_per_s else began, go_on=go_on)
            if not go_on():
                raise PrepareError(f"given up with {len(loads)} slots to load: superseded, or out of time")
            started = self.clock()
            try:
                tier = self._fill(load, told)
            except SourceError as error:
                failures.append((load.layer, load.expert, error.reason))
                continue
            entry = spent.setdefault(tier, _Spent())
            entry.slots += 1
            entry.bytes += size
            entry.seconds += self.clock() - started
        if failures:
            raise NoSourceError(failures)
        return tuple(
            AckPhase(tier=tier, slots=entry.slots, bytes=entry.bytes, seconds=entry.seconds)
            for tier, entry in spent.items()
        )

    def _hold_back(self, *, until: float, go_on: Callable[[], bool]) -> None:
        while (ahead := until - self.clock()) > 0 and go_on():
            self.sleep(min(ahead, _NAP_S))

    def _fill(self, load: Load, told: set[str]) -> SourceTier:
        """Fill one slot; each trouble with a source is logged once (it is in ``told`` then)."""
        reasons = []
        for source in load.sources:
            try:
                self._from(source, load)
            except SourceError as error:
                reasons.append(str(error))
                if str(error) not in told:
                    told.add(str(error))
                    log.warning("layer %d expert %d: %s; the next source is tried", load.layer, load.expert, error)
            else:
                return source.tier
        raise SourceError(SourceTier.CHECKPOINT, ", ".join(reasons) or "no source was named")

    def _from(self, source: Source, load: Load) -> None:
        with self.store.write(load.layer, load.slot, load.expert) as (w13, w2):
            self._copy(source, load.layer, load.expert, w13, w2)
            if expert_checksum(w13, w2) != self.manifest.checksum(load.layer, load.expert):
                raise SourceError(source.tier, "checksum differs from the manifest")

    def _copy(
        self, source: Source, layer: Layer, expert: Expert, w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8]
    ) -> None:
        match source.tier:
            case SourceTier.SAME_RANK:
                self.store.memory.read(layer, source.slot, w13, w2)
            case SourceTier.HOST_PEER:
                memory = self.peer_memory(source.rank)
                if memory is None:
                    raise SourceError(source.tier, f"rank {source.rank} is not linked or not alive")
                memory.read(layer, source.slot, w13, w2)
            case SourceTier.REMOTE_PEER:
                raise SourceError(source.tier, "this build reads peers of its own host only")
            case SourceTier.HOST_BACKUP:
                if source.address not in self.backups:
                    self.backups[source.address] = BackupFile(Path(source.address))
                self.backups[source.address].read(layer, expert, w13, w2)
            case SourceTier.CHECKPOINT:
                self._from_checkpoint(layer, expert, w13, w2)

    def _from_checkpoint(
        self, layer: Layer, expert: Expert, w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8]
    ) -> None:
        if self.checkpoint is None:
            raise SourceError(SourceTier.CHECKPOINT, "this rank has no checkpoint")
        try:
            self.checkpoint.read(self.checkpoint.layers[layer], expert, w13, w2, dtype=self.manifest.dtype)
        except CheckpointError as error:
            raise SourceError(SourceTier.CHECKPOINT, str(error)) from error
