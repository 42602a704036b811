"""ARCHITECTURE's invariants, checked at every commit of etcd, every slot written and every step that completes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from schemas.codec import decode
from schemas.operations import Operation
from schemas.placement import EMPTY, Placement
from schemas.records import EpochRecord, Status
from schemas.vocabulary import Cut

if TYPE_CHECKING:
    from controlplane.etcd import Event
    from schemas.keys import Keys
    from schemas.vocabulary import Epoch, Incarnation, Rank
    from tools.simulation.engines import Engine
    from tools.simulation.etcd_store import EtcdStore


class ViolationError(AssertionError):
    """An invariant does not hold; the simulation of this seed ends here."""


@dataclass
class Checker:
    """Knows the truth (slots, processes) and compares every record with it."""

    keys: Keys
    store: EtcdStore
    engines: dict[Rank, Engine] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    record: EpochRecord | None = None
    status: Status = field(default_factory=Status)
    slow: set[Rank] = field(default_factory=set)
    """Ranks that really are slow."""
    checked: int = 0
    _seen: int = 0
    _excluded: dict[Rank, Incarnation] = field(default_factory=dict)
    _operations: dict[str, Operation] = field(default_factory=dict)

    def fail(self, what: str) -> None:
        """Remember the first violation; what follows from it is no news."""
        self.problems.append(what)

    # --- at every commit ----------------------------------------------------------------------------------------------

    def committed(self) -> None:
        """Look at what was committed since the last time."""
        for commit in self.store.since(self._seen + 1):
            self._seen = commit.batch.revision
            for event in commit.batch.events:
                self.checked += 1
                if event.key == self.keys.epoch and event.item.value:
                    self._epoch(decode(event.item.value, EpochRecord, key=event.key))
                elif event.key.startswith(self.keys.operations) and event.item.value:
                    self._operation(event)
                elif event.key == self.keys.status and event.item.value:
                    self._blamed(decode(event.item.value, Status, key=event.key))

    def _epoch(self, record: EpochRecord) -> None:
        before, self.record = self.record, record
        self._order(before, record)
        self._fence(record)
        self._incarnations(before, record)
        self._placements(record)

    def _order(self, before: EpochRecord | None, record: EpochRecord) -> None:
        """3: epochs only grow, and no number is used for two versions."""
        if before is None:
            return
        old, new = before.committed, record.committed
        if new.epoch < old.epoch:
            self.fail(f"invariant 3: epoch {new.epoch} was committed after {old.epoch}")
        if new.epoch == old.epoch and (new.members, new.placement) != (old.members, old.placement):
            self.fail(f"invariant 3: epoch {new.epoch} names two versions")
        if record.fence < before.fence:
            self.fail(f"invariant 3: fence {record.fence} wrote after fence {before.fence}")
        planned = new.epoch > old.epoch and new.cut is Cut.PLANNED
        prepared = before.preparing
        if planned and (prepared is None or (prepared.epoch, prepared.placement) != (new.epoch, new.placement)):
            self.fail(f"invariant 2: planned epoch {new.epoch} was committed without having been prepared")

    def _fence(self, record: EpochRecord) -> None:
        """3: only who leads writes."""
        candidates = self.store.get(self.keys.election).items
        leader = min((item.create_revision for item in candidates), default=0)
        if record.fence != leader:
            self.fail(f"invariant 3: fence {record.fence} wrote epoch {record.committed.epoch}, but {leader} leads")

    def _incarnations(self, before: EpochRecord | None, record: EpochRecord) -> None:
        """6: a process that was excluded is never counted on again."""
        if before is not None and record.committed.cut is Cut.ABORT:
            staying = {member.rank for member in record.committed.members}
            for member in before.committed.members:
                if member.rank not in staying:
                    self._excluded[member.rank] = max(self._excluded.get(member.rank, 0), member.incarnation)
        versions = [record.committed, *([record.preparing] if record.preparing else [])]
        for version in versions:
            for member in version.members:
                if member.incarnation <= self._excluded.get(member.rank, -1):
                    self.fail(
                        f"invariant 6: epoch {version.epoch} takes rank {member.rank} back as incarnation "
                        f"{member.incarnation}, which was excluded"
                    )

    def _placements(self, record: EpochRecord) -> None:
        """4: what a record says is held is held, and all that a version routes to is held before it is committed."""
        held = self._placement(record.held)
        if held is not None:
            for member in record.committed.members:
                self._truth(member.rank, member.incarnation, held, f"record of epoch {record.committed.epoch}")
        table = self._placement(record.committed.placement)
        members = [member.rank for member in record.committed.members]
        if table is None:
            return
        if len(table.missing(members)) != record.committed.missing:
            self.fail(
                f"invariant 4: epoch {record.committed.epoch} hides {len(table.missing(members))} missing experts"
            )
        if record.loading or record.committed.missing:
            return
        for member in record.committed.members:
            self._truth(member.rank, member.incarnation, table, f"epoch {record.committed.epoch}", routed=True)

    def _truth(
        self, rank: Rank, incarnation: Incarnation, said: Placement, where: str, *, routed: bool = False
    ) -> None:
        engine = self.engines.get(rank)
        if engine is None or not engine.alive or engine.incarnation != incarnation or rank >= said.max_ranks:
            return  # its death is known soon, and no step completes until then
        shape = engine.slots.shape
        row = said.slots[: shape[0], rank, : shape[1]]
        counts = row != EMPTY
        if routed:
            counts &= said.weights[: shape[0], rank, : shape[1]] > 0
        if np.any(counts & (row != engine.slots)):
            self.fail(f"invariant 4: {where} says rank {rank} holds {row.tolist()}, it holds {engine.slots.tolist()}")

    def _blamed(self, status: Status) -> None:
        """Nobody is planned with less, or drained, for a slowness that is not its own."""
        self.status = status
        for view in status.ranks:
            if view.rank not in self.slow and (view.slow < 1 or view.draining.startswith("slow")):
                self.fail(f"rank {view.rank} is not slow, but planned with {view.slow:.0%}; drained: {view.draining!r}")

    def _placement(self, digest: str) -> Placement | None:
        found = self.store.get(self.keys.placement(digest)).only if digest else None
        if found is None:
            if digest:
                self.fail(f"placement {digest[:12]} is named by the record but not in etcd")
            return None
        return Placement.from_wire(found.value)

    def _operation(self, event: Event) -> None:
        """8: an operation ends once."""
        operation = decode(event.item.value, Operation, key=event.key)
        before = self._operations.get(operation.id)
        if before is not None and before.state.final and operation.state is not before.state:
            self.fail(f"operation {operation.id} was {before.state} and became {operation.state}")
        self._operations[operation.id] = operation

    def live(self) -> Placement | None:
        """The committed table."""
        return self._placement(self.record.committed.placement) if self.record else None

    # --- at every write and step --------------------------------------------------------------------------------------

    def writes(self, engine: Engine, layer: int, slot: int, epoch: Epoch) -> None:
        """1: a slot that the live table routes to is not written."""
        table = engine.active
        if table is not None and table.placement.weights[layer, engine.rank, slot] > 0:
            self.fail(
                f"invariant 1: rank {engine.rank} writes slot {slot} of layer {layer} for epoch {epoch} "
                f"while it runs under epoch {table.epoch}, which uses it"
            )

    def stepped(self, epoch: Epoch, group: list[Engine]) -> None:
        """2 and 5: one table on every rank, and every expert of it really there."""
        tables = {_routing(engine.active.placement) for engine in group if engine.active}
        if len(tables) != 1:
            self.fail(f"invariant 2: a step of epoch {epoch} ran with {len(tables)} tables")
            return
        for engine in group:
            table = engine.active
            if table is None:
                continue
            row = table.placement.slots[:, engine.rank]
            used = table.placement.weights[:, engine.rank] > 0
            if np.any(used & (row[:, : engine.slots.shape[1]] != engine.slots)):
                self.fail(
                    f"invariant 5: a step of epoch {epoch} sampled from rank {engine.rank}, whose slots hold "
                    f"{engine.slots.tolist()} instead of {row.tolist()}"
                )


def _routing(placement: Placement) -> tuple[bytes, bytes]:
    """All of a placement that a step depends on: not what lies in slots that nothing is sent to."""
    return np.where(placement.weights > 0, placement.slots, EMPTY).tobytes(), placement.weights.tobytes()
