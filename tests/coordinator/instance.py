"""A core, the records it wrote, and ranks that do as they are told: the driver of the core's tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from controlplane.coordinator.core import step
from controlplane.coordinator.holdings import widened
from controlplane.coordinator.placing import LoadAwarePlanner
from controlplane.coordinator.staging import violations
from controlplane.coordinator.state import (
    SECOND,
    Change,
    Elected,
    Kind,
    Observed,
    Planned,
    Question,
    State,
    Tick,
    Write,
    Written,
)
from schemas.operations import Operation, OperationKind
from schemas.policy import Spec
from schemas.records import Ack, FaultReport, ReceiveWait, Registration, Suspicion
from tests.coordinator.slots import Slots

if TYPE_CHECKING:
    from schemas.placement import Placement
    from schemas.vocabulary import Evidence


@dataclass
class Instance:
    """Applies every write at once; ``writes`` is the story."""

    experts: int = 8
    layers: int = 2
    slots: int = 4
    spec: Spec = field(default_factory=lambda: Spec(form_wait_s=1.0))
    now: int = 1_000 * SECOND
    revision: int = 0
    writes: list[Write] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    slots_held: Slots = field(default_factory=Slots)
    ponders: bool = False
    """Questions to the planner wait for ``answer``; else they are answered at once."""
    question: Question | None = None
    wake: int = 0
    """When the core wants to be asked again though nothing happens."""

    def __post_init__(self) -> None:
        self.state = State(replica="a")
        self.planner = LoadAwarePlanner()
        self.put(Kind.SPEC, "", self.spec)
        self.feed(Elected(self.now, fence=1))

    def feed(self, event: Any) -> None:
        before, wake = self.state.record, self.wake
        outcome = step(self.state, event, planner=self.planner)
        self.state, self.wake = outcome.state, outcome.wake
        if isinstance(event, Tick) and (outcome.write or outcome.question):
            assert 0 < wake <= event.now, f"time alone brought {outcome.reason!r}, and nobody had been told when"
        if outcome.reason:
            self.reasons.append(outcome.reason)
        if outcome.question is not None:
            assert self.question is None, "two questions at once"
            self.question = outcome.question
        if outcome.write is None:
            if self.question is not None and not self.ponders:
                self.answer()
            return
        self.check(before, outcome.write)
        self.writes.append(outcome.write)
        self.revision += 1
        # Through the codec: what a successor reads is what is decided from.
        self.feed(Written(self.now, coded(outcome.write), self.revision))

    def answer(self) -> None:
        """The planner's answer to what was asked, if anything was."""
        question, self.question = self.question, None
        if question is not None:
            plan = self.planner.plan(question.instance, live=question.live, max_bytes=question.max_bytes)
            self.feed(Planned(self.now, question, plan))

    def check(self, before, write: Write) -> None:
        record = write.record
        if record is None:
            return
        known = {p.digest: p for p in write.placements} | dict(self.state.placements)
        self.slots_held.check(record, known, self.state.registrations)
        self.slots_held.published(record, known, self.state.registrations)
        if before is not None:
            assert record.committed.epoch >= before.committed.epoch
            assert record.issued >= before.issued
        if record.preparing is not None:
            target, live = known[record.preparing.placement], known.get(record.committed.placement)
            if live is not None:
                live = widened(live, rows=target.max_ranks, slots=target.slots_per_rank)
                assert violations(live=live, target=target) == 0
        if record.committed.placement and not record.loading:
            held, table = known[record.held], known[record.committed.placement]
            table = widened(table, rows=held.max_ranks, slots=held.slots_per_rank)
            members = [m.rank for m in record.committed.members]
            assert ((table.slots == held.slots) | (table.weights == 0))[:, members].all()
            assert len(table.missing(members)) == record.committed.missing

    def put(self, kind: Kind, name: Any, value: Any) -> None:
        self.revision += 1
        if isinstance(value, Ack):
            self.slots_held.acknowledged(value)
        self.feed(Observed(self.now, (Change(kind, name, value, self.revision),)))

    def elapse(self, seconds: float, *, step_s: float = 0.1) -> None:
        end = self.now + int(seconds * SECOND)
        while self.now < end:
            self.now = min(self.now + int(step_s * SECOND), end)
            self.feed(Tick(self.now))

    def register(self, rank: int, *, incarnation: int = 1, ready: bool = True, host: str = "", **more: Any) -> None:
        fields = {"slots": self.slots, "layers": self.layers, "experts": self.experts, "expert_bytes": 100}
        fields |= {"checkpoint": "sum", "model": "m", **more}
        registration = Registration(
            rank=rank, incarnation=incarnation, host=host or f"h{rank // 2}", ready=ready, **fields
        )
        self.put(Kind.RANK, rank, registration)

    def gone(self, rank: int) -> None:
        for epoch, who in list(self.state.acks):
            if who == rank:
                self.put(Kind.ACK, (epoch, who), None)
        if rank in self.state.reports:
            self.put(Kind.REPORT, rank, None)
        self.put(Kind.RANK, rank, None)

    def ack(self, rank: int, *, prepared: bool = True, activated: bool = False, **more: Any) -> None:
        record = self.state.record
        version = record.committed if activated or record.preparing is None else record.preparing
        incarnation = self.state.registrations[rank].incarnation
        ack = Ack(
            rank=rank,
            incarnation=incarnation,
            epoch=version.epoch,
            prepared=prepared,
            activated=activated,
            **{"finished_unix_ns": self.now, **more},
        )
        self.put(Kind.ACK, (version.epoch, rank), ack)

    def work(self, *, but: tuple[int, ...] = ()) -> None:
        """Every rank that is alive does what the record asks, until nothing is asked any more."""
        for _ in range(200):
            if not self._worked(but):
                return
        raise AssertionError(f"the instance does not come to rest: {self.reasons[-10:]}")

    def _worked(self, but: tuple[int, ...]) -> bool:
        record, acks = self.state.record, self.state.acks
        if record is None:
            return False
        members = {m.rank: m.incarnation for m in record.committed.members}
        for rank, there in sorted(self.state.registrations.items()):
            if rank in but:
                continue
            if record.preparing is not None:
                named = members.get(rank) or {m.rank: m.incarnation for m in record.preparing.members}.get(rank)
                if named == there.incarnation and (record.preparing.epoch, rank) not in acks:
                    self.ack(rank)
                    return True
            elif members.get(rank) == there.incarnation:
                mine = acks.get((record.committed.epoch, rank))
                if mine is None or not mine.activated:
                    self.ack(rank, activated=True)
                    return True
        return False

    def form(self, ranks: int, **more: Any) -> None:
        self.put(Kind.SPEC, "", msgspec.structs.replace(self.spec, ranks=ranks))
        for rank in range(ranks):
            self.register(rank, **more)
        self.work()
        assert self.members == list(range(ranks)), self.reasons

    def report(self, reporter: int, *suspicions: tuple[int, Evidence], epoch: int = -1, detail: str = "") -> None:
        registrations = self.state.registrations
        found = tuple(
            Suspicion(
                rank,
                registrations[rank].incarnation if rank in registrations else self.state.members.get(rank, 1),
                evidence,
                detail,
            )
            for rank, evidence in suspicions
        )
        report = FaultReport(
            reporter=reporter,
            incarnation=registrations[reporter].incarnation,
            epoch=self.epoch if epoch < 0 else epoch,
            suspicions=found,
            detected_unix_ns=self.now - 1_000_000,
        )
        self.put(Kind.REPORT, reporter, report)

    def waits(self, rank: int, *, running: int = 4, **share: float) -> None:
        """One row of the matrix: ``_2=0.5`` says that ``rank`` spent half of its time waiting for rank 2."""
        row = [share.get(f"_{peer}", 0.01) if peer != rank else 0.0 for peer in range(max(self.members) + 1)]
        incarnation = self.state.registrations[rank].incarnation
        wait = ReceiveWait(rank=rank, incarnation=incarnation, epoch=self.epoch, share=tuple(row), running=running)
        self.put(Kind.WAIT, rank, wait)

    def ask(self, kind: str, *ranks: int, id: str = "", **more: Any) -> str:  # noqa: A002
        name = id or f"op{len(self.state.operations)}"
        operation = Operation(
            id=name,
            kind=OperationKind(kind),
            who="ops",
            reason="test",
            ranks=ranks,
            created_unix_ns=self.now,
            **more,
        )
        self.put(Kind.OPERATION, name, operation)
        return name

    def operation(self, name: str) -> Operation:
        return self.state.operations[name]

    @property
    def members(self) -> list[int]:
        return sorted(self.state.members)

    @property
    def epoch(self) -> int:
        return self.state.record.committed.epoch

    @property
    def live(self):
        return self.state.live

    def state_of(self, rank: int) -> str:
        return self.state.view(rank).state.value

    def succeed(self) -> None:
        """Another replica takes over with nothing but what stands in etcd."""
        kinds = {k: getattr(self.state, k.value) for k in Kind if k is not Kind.PAST}
        fresh = State(replica="b")
        changes = []
        for (kind, name), revision in self.state.revisions.items():
            table = kinds[kind]
            value = table.get(name) if isinstance(table, dict) else table
            value = value[-1] if kind is Kind.WAIT and value else value
            if value is not None:
                changes.append(Change(kind, name, value, revision))
        self.state, self.question = fresh, None  # what the other's planner answers, nobody hears
        self.feed(Observed(self.now, tuple(changes)))
        self.feed(Elected(self.now, fence=self.revision))


def coded(write: Write) -> Write:
    """``write`` with its records encoded and decoded again."""

    def again(value):
        return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))

    from dataclasses import replace

    return replace(
        write,
        record=write.record and again(write.record),
        status=write.status and again(write.status),
        recoveries=tuple(again(r) for r in write.recoveries),
        operations=tuple(again(o) for o in write.operations),
    )


def traffic(placement: Placement) -> np.ndarray:
    """[max_ranks] part of the traffic that each rank gets when every expert is as popular as the others."""
    layers, ranks, _ = placement.slots.shape
    found = np.zeros(ranks)
    for layer in range(layers):
        slots, weights = placement.slots[layer], placement.weights[layer].astype(float)
        experts = np.minimum(slots, placement.n_experts - 1)
        total = np.bincount(experts.ravel(), weights=weights.ravel(), minlength=placement.n_experts)
        share = np.divide(weights, total[experts], out=np.zeros_like(weights), where=weights > 0)
        found += share.sum(axis=1) / placement.n_experts / layers
    return found
