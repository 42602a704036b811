"""The core against anything: hypothesis chooses what happens, and after every event the record must be right.

What no write may ever do is asserted by ``Instance.check`` on each of them; here is what holds between them, and that
an instance left in peace becomes whole by itself.
"""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controlplane.coordinator.foresight import Foresight
from controlplane.coordinator.placing import LoadAwarePlanner
from controlplane.coordinator.state import Kind
from schemas.operations import OperationKind
from schemas.policy import OnTimeout, Spec
from schemas.records import Ack, ExpertLoad
from schemas.vocabulary import Cut, Evidence
from tests.coordinator.instance import Instance

RANKS = 5
ranks = st.integers(0, RANKS - 1)
EVIDENCE = (Evidence.DEAD, Evidence.SILENT, Evidence.SLOW, Evidence.NOTICE)
SETTLE_S = 60.0


class Machine(RuleBasedStateMachine):
    """Five ranks on three hosts, eight experts: two ranks suffice with two slots to spare, one does not."""

    def __init__(self) -> None:
        super().__init__()
        policy = Spec(
            ranks=3,
            form_wait_s=1.0,
            prepare_deadline_s=4.0,
            abort_deadline_s=3.0,
            activate_deadline_s=3.0,
            silent_tie_s=0.5,
            slow_after_s=1.0,
            slow_drain_s=5.0,
            slow_clear_s=2.0,
            backoff_s=0.2,
            backoff_max_s=2.0,
            flap_limit=50,
            source_retry_s=2.0,
            operation_deadline_s=10.0,
        )
        self.it = Instance(spec=policy, slots=5)
        self.it.planner = Foresight(LoadAwarePlanner())
        self.incarnation = dict.fromkeys(range(RANKS), 0)
        self.excluded: dict[int, int] = {}
        self.used: dict[int, tuple[object, ...]] = {}
        self.seen = 0

    @initialize(ranks=st.integers(2, RANKS))
    def begins(self, ranks: int) -> None:
        """Most of what can go wrong needs an instance."""
        for rank in range(ranks):
            self.incarnation[rank] += 1
            self.it.register(rank, incarnation=1)
        self.it.elapse(1.5, step_s=0.5)
        self.it.work()
        assert self.it.members == list(range(ranks))

    # --- processes ----------------------------------------------------------------------------------------------------

    @rule(rank=ranks, ready=st.booleans())
    def starts(self, *, rank: int, ready: bool) -> None:
        """A new process in a rank's place, whatever was there before."""
        self.incarnation[rank] += 1
        self.it.register(rank, incarnation=self.incarnation[rank], ready=ready)

    @rule(rank=ranks)
    def becomes_ready(self, rank: int) -> None:
        if rank in self.it.state.registrations:
            self.it.register(rank, incarnation=self.incarnation[rank])

    @rule(rank=ranks)
    def lease_ends(self, rank: int) -> None:
        self.it.gone(rank)

    @rule(rank=ranks, reason=st.sampled_from(["", "SIGTERM"]))
    def wants_to_leave(self, rank: int, reason: str) -> None:
        if rank in self.it.state.registrations:
            self.it.register(rank, incarnation=self.incarnation[rank], leaving=reason)

    @rule(rank=ranks, checkpoint=st.sampled_from(["", "sum"]))
    def disk(self, rank: int, checkpoint: str) -> None:
        if rank in self.it.state.registrations:
            self.it.register(rank, incarnation=self.incarnation[rank], checkpoint=checkpoint)

    @rule(rank=ranks)
    def engine_dies(self, rank: int) -> None:
        """Its agent lives on, registered as before, and says so."""
        if rank in self.it.state.registrations and self.it.state.record is not None:
            self.it.report(rank, (rank, Evidence.DEAD))

    # --- evidence -----------------------------------------------------------------------------------------------------

    @rule(reporter=ranks, accused=st.sets(ranks, min_size=1, max_size=3), evidence=st.sampled_from(EVIDENCE))
    def reports(self, reporter: int, accused: set[int], evidence: Evidence) -> None:
        if reporter in self.it.state.registrations and self.it.state.record is not None:
            self.it.report(reporter, *((rank, evidence) for rank in sorted(accused)))

    @rule(slow=ranks, share=st.floats(0.0, 0.9), rows=st.integers(1, 4))
    def waits_for(self, slow: int, share: float, rows: int) -> None:
        for _ in range(rows):
            for rank in self.it.members:
                if rank in self.it.state.registrations and rank in self.it.members:
                    self.it.waits(rank, **({f"_{slow}": share} if rank != slow else {}))

    @rule(rank=ranks, hot=st.integers(0, 7), tokens=st.sampled_from([1.0, 20.0, 200.0]))
    def routes(self, rank: int, hot: int, tokens: float) -> None:
        """One expert is popular now."""
        load = np.ones((self.it.layers, self.it.experts), dtype="<f2")
        load[:, hot] = tokens
        record = ExpertLoad(rank=rank, layers=self.it.layers, experts=self.it.experts, tokens=load.tobytes())
        self.it.put(Kind.LOAD, rank, record)

    @rule(hot=st.integers(0, 7))
    def rebalances(self, hot: int) -> None:
        """To where another expert is popular: slots in use have to be given to others."""
        for rank in range(RANKS):
            self.it.put(Kind.LOAD, rank, None)
        self.routes(rank=0, hot=hot, tokens=200.0)
        self.it.ask(OperationKind.REBALANCE.value)

    @rule(hot=st.integers(0, 7))
    def rebalances_in_peace(self, hot: int) -> None:
        """The same with nothing else under way, so that slots in use really are given to others."""
        self.it.work()
        self.it.elapse(1.5, step_s=0.5)
        self.it.work()
        self.rebalances(hot=hot)

    @rule()
    def planner_answers(self) -> None:
        self.it.answer()

    @rule(ponders=st.booleans())
    def planner_takes_its_time(self, *, ponders: bool) -> None:
        """Until it answers the instance moves on."""
        self.it.ponders = ponders

    # --- acknowledgements ---------------------------------------------------------------------------------------------

    @rule(rank=ranks)
    def answers(self, rank: int) -> None:
        """One rank does what the record asks of it now."""
        self._ack(rank, prepared=True)

    @rule(rank=ranks, missing=st.booleans())
    def cannot(self, *, rank: int, missing: bool) -> None:
        """One rank says that it could not; some source was not what it was thought to be."""
        pairs = ((0, 0),) if missing else ()
        self._ack(rank, prepared=False, error="simulated", missing=pairs)

    @rule(but=st.sets(ranks, max_size=2))
    def everybody_answers(self, but: set[int]) -> None:
        self.it.work(but=tuple(but))

    def _ack(self, rank: int, **fields) -> None:
        record, there = self.it.state.record, self.it.state.registrations.get(rank)
        if record is None or there is None:
            return
        version = record.preparing or record.committed
        ack = Ack(
            rank=rank,
            incarnation=there.incarnation,
            epoch=version.epoch,
            activated=record.preparing is None and fields["prepared"],
            finished_unix_ns=self.it.now,
            **fields,
        )
        self.it.put(Kind.ACK, (version.epoch, rank), ack)

    # --- operators and leaders ----------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(list(OperationKind)), rank=ranks, number=st.integers(0, RANKS))
    def asks(self, kind: OperationKind, rank: int, number: int) -> None:
        named = () if kind in (OperationKind.REBALANCE, OperationKind.RESUME, OperationKind.SCALE) else (rank,)
        parameters = {"target": number, "by": (number % RANKS,), "losses": bool(number % 2)}
        self.it.ask(kind.value, *named, parameters=parameters)

    @rule(policy=st.sampled_from(list(OnTimeout)))
    def policy(self, policy: OnTimeout) -> None:
        self.it.put(Kind.SPEC, "", msgspec.structs.replace(self.it.state.spec, on_timeout=policy))

    @rule()
    def leader_changes(self) -> None:
        self.it.succeed()

    @rule(seconds=st.sampled_from([0.05, 0.5, 2.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.it.elapse(seconds, step_s=seconds / 4)

    @precondition(lambda self: self.it.planner.due(self.it.state))
    @rule()
    def looks_ahead(self) -> None:
        list(self.it.planner.ahead(self.it.state))

    # --- what must always hold ----------------------------------------------------------------------------------------

    @invariant()
    def every_write_keeps_its_word(self) -> None:
        """3, 4, 6: numbers only grow, nobody excluded returns, what is committed complete is complete."""
        for write in self.it.writes[self.seen :]:
            record = write.record
            if record is None:
                continue
            versions = [record.committed, *([record.preparing] if record.preparing else [])]
            for version in versions:
                members = [member.rank for member in version.members]
                assert members == sorted(set(members))
                assert version.epoch <= record.issued
                table = (version.members, version.placement)
                assert self.used.setdefault(version.epoch, table) == table, "one number, two versions"
                for member in version.members:
                    assert member.incarnation > self.excluded.get(member.rank, 0), (member, write.reason)
            if record.preparing:
                assert record.preparing.epoch > record.committed.epoch
            if record.committed.cut is Cut.ABORT:
                self._note_excluded(record.committed)
        self.seen = len(self.it.writes)

    def _note_excluded(self, version) -> None:
        recovery = self.it.state.recoveries.get(f"{version.epoch:012d}")
        for blame in recovery.blamed if recovery else ():
            self.excluded[blame.rank] = max(self.excluded.get(blame.rank, 0), blame.incarnation)

    @invariant()
    def nothing_hangs_on_a_write(self) -> None:
        assert not self.it.state.writing

    @invariant()
    def the_live_table_names_what_it_lacks(self) -> None:
        state = self.it.state
        if state.record is not None and state.live is not None:
            assert len(state.live.missing(state.members)) == state.record.committed.missing

    def teardown(self) -> None:
        """10: with every process new, every hold lifted and everybody answering, the instance becomes whole."""
        self.it.ponders = False
        self.it.answer()
        for rank in range(RANKS):
            self.incarnation[rank] += 1
            self.it.gone(rank)
            self.it.register(rank, incarnation=self.incarnation[rank])
        for kind, named in (("resume", ()), ("scale", ()), ("rejoin", tuple(range(RANKS)))):
            self.it.ask(kind, *named, id=f"last-{kind}", parameters={"target": 0}, deadline_s=SETTLE_S)
        for _ in range(int(SETTLE_S)):
            self.it.work()
            self.it.elapse(1.0, step_s=0.5)
            record = self.it.state.record
            if record and self.it.members == list(range(RANKS)) and not record.preparing:
                break
        self.every_write_keeps_its_word()
        assert self.it.members == list(range(RANKS)), self.it.reasons[-10:]
        assert self.it.live.missing(self.it.members) == []


Machine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMachine = Machine.TestCase
