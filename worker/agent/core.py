"""The agent's mind: ``(state, event) → (state, decision)``, with no I/O and no clock of its own.

What it guarantees:

* the engine hears of an epoch at most once, prepares before it commits, and never hears of an older one;
* an engine that died is reported before anything else, and comes back only as a new incarnation, after a back-off;
* a rank that a committed epoch excluded against its will is fenced before it is ended;
* with etcd away nothing changes: the epoch that runs goes on (fail static). Another rank can take this one's place only
  through an epoch that every survivor enters, and from then on this engine completes no step (DATA_PLANE, fencing).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

from msgspec import structs

from schemas.messages import (
    Activated,
    Ask,
    Commit,
    Discard,
    Drain,
    EngineStatus,
    Fault,
    Hello,
    Prepare,
    Prepared,
    Ready,
)
from schemas.records import Ack, FaultReport, Registration, Suspicion
from schemas.vocabulary import Cut, Evidence, stamp_of
from worker.agent.accusing import turn
from worker.agent.events import (
    Begin,
    CallOff,
    ClearAway,
    Committed,
    Decision,
    EndEngine,
    EngineEnded,
    EpochSeen,
    Exit,
    FenceEngine,
    Heard,
    LeaseGone,
    Leave,
    Publish,
    RenewLease,
    Send,
    StartEngine,
    Tick,
    WakeAt,
)

if TYPE_CHECKING:
    from schemas.records import EpochRecord, EpochVersion
    from schemas.vocabulary import Epoch, Incarnation, Rank
    from worker.agent.events import Action, Event, Plan


@dataclass(frozen=True)
class Policy:
    """How an agent behaves; all times in seconds."""

    first_backoff_s: float = 0.2
    longest_backoff_s: float = 30.0
    stable_after_s: float = 60.0
    """An engine that ran this long starts its back-off anew."""
    prepare_deadline_s: float = 60.0
    drain_poll_s: float = 0.2
    """How often a rank that is to go looks whether its requests have ended."""
    ack_hold_s: float = 0.1
    """How long it is kept back that a loss was crossed: all survivors' writes would take the processor from the step
    that clients wait for, and nobody waits for them."""
    accuse_turn_s: float = 0.015
    """How long each witness of a death leaves the word to the one before: an epoch takes about that long."""


@dataclass(frozen=True)
class State:
    """Everything the agent knows.

    Attributes:
        identity: registration as it will be published, complete but for what the engine adds.
        running: incarnation of the engine that runs, 0 when none does.
        hello: the engine's shape; None until it spoke.
        ready: the engine answers requests.
        started_at: when the engine was started.
        restarts: engines that ended since the last stable one.
        restart_at: when the next engine may start.
        seen: the newest epoch record, and what it asks of us.
        asked: highest epoch the engine was asked to prepare.
        prepared: highest epoch the engine says it prepared.
        crossed: highest epoch whose commit was passed on.
        activated: epoch the engine runs under.
        parting: epoch that let us go and that the engine has still to cross into; 0 when there is none.
        ack: what was last acknowledged; later phases add to it.
        farewell: the acknowledgement of an epoch without us, held back until our last request has ended.
        accusation: what was seen of a death that others tell of first; dropped with the epoch it belongs to.
        accuse_at: when it is told after all.
        leaving: why the rank wants to go; empty while it stays.
        leave_by: when it goes without being let go.
    """

    identity: Registration
    policy: Policy
    running: Incarnation = 0
    hello: Hello | None = None
    ready: bool = False
    started_at: float = 0.0
    restarts: int = 0
    restart_at: float = 0.0
    seen: EpochSeen | None = None
    asked: Epoch = 0
    prepared: Epoch = 0
    crossed: Epoch = 0
    activated: Epoch = 0
    parting: Epoch = 0
    ack: Ack | None = None
    farewell: Ack | None = None
    accusation: FaultReport | None = None
    accuse_at: float = 0.0
    leaving: str = ""
    leave_by: float = 0.0

    @property
    def record(self) -> EpochRecord | None:
        """The newest epoch record."""
        return self.seen.record if self.seen else None

    @property
    def rank(self) -> Rank:
        """The rank this agent fills."""
        return self.identity.rank

    def among(self, version: EpochVersion | None) -> bool:
        """Whether the running engine is a member of that version."""
        return version is not None and any(
            member.rank == self.rank and member.incarnation == self.running for member in version.members
        )

    @property
    def active(self) -> bool:
        """Whether the committed epoch counts on the running engine."""
        return self.record is not None and self.among(self.record.committed)


def decide(state: State, event: Event) -> tuple[State, Decision]:
    """Take one event; the new state, and what to do in which order."""
    match event:
        case Begin():
            return _start(state, event.now, event.incarnation)
        case Heard():
            return _heard(state, event)
        case EngineEnded():
            return _engine_ended(state, event)
        case EpochSeen():
            return _epoch_seen(state, event)
        case LeaseGone():
            return state, Decision(
                (RenewLease("the lease is gone"),), "what stood on the lost lease stands again on a new one"
            )
        case Leave():
            return _leave(state, event)
        case Tick():
            return _tick(state, event)
    assert_never(event)


# --- the engine's life ----------------------------------------------------------------------------------------------


def _start(state: State, now: float, incarnation: Incarnation) -> tuple[State, Decision]:
    fresh = replace(
        state,
        running=incarnation,
        hello=None,
        ready=False,
        started_at=now,
        restart_at=0.0,
        asked=0,
        prepared=0,
        crossed=0,
        activated=0,
        parting=0,
        farewell=None,
        accusation=None,
    )
    return fresh, Decision((StartEngine(incarnation),), f"engine starts as incarnation {incarnation}")


def _engine_ended(state: State, event: EngineEnded) -> tuple[State, Decision]:
    if event.incarnation != state.running:
        return state, Decision(reason=f"an engine that was given up ended ({event.how})")
    report = Publish(
        FaultReport(
            reporter=state.rank,
            incarnation=state.running,
            epoch=state.activated,
            suspicions=(Suspicion(state.rank, state.running, Evidence.DEAD, event.how),),
            detected_unix_ns=event.unix_ns,
        )
    )
    if state.leaving:
        gone = replace(state, running=0, hello=None, ready=False)
        end = EndEngine(event.how, fence=False)
        return gone, Decision((report, end, Exit(f"left: {state.leaving}")), "engine ended while leaving")
    stable = event.now - state.started_at >= state.policy.stable_after_s
    restarts = 0 if stable else state.restarts
    wait = min(state.policy.longest_backoff_s, state.policy.first_backoff_s * 2**restarts)
    down = replace(
        state,
        running=0,
        hello=None,
        ready=False,
        restarts=restarts + 1,
        restart_at=event.now + wait,
        activated=0,
        farewell=None,
    )
    return down, Decision(
        (report, Publish(_registration(down)), ClearAway(event.how), WakeAt(down.restart_at)),
        f"engine died ({event.how}); the next one starts in {wait:.1f} s",
    )


def _tick(state: State, event: Tick) -> tuple[State, Decision]:
    if state.leaving and state.leave_by and event.now >= state.leave_by:
        end = EndEngine("leave deadline passed", fence=True)
        return replace(state, leave_by=0.0), Decision(
            (end, Exit("leave deadline passed")), "leaves without being let go"
        )
    if not state.running and not state.leaving and state.restart_at and event.now >= state.restart_at:
        return _start(state, event.now, event.incarnation)
    if state.accusation is not None and event.now >= state.accuse_at:
        return replace(state, accusation=None), Decision((Publish(state.accusation),), "nobody acted on the death yet")
    if state.farewell is not None:
        return state, Decision((Send(Ask()),), "are there requests left?")
    return state, Decision()


def _heard(state: State, event: Heard) -> tuple[State, Decision]:
    message = event.message
    match message:
        case Hello():
            return _hello(state, message)
        case Ready():
            ready = replace(state, ready=True, identity=structs.replace(state.identity, serve_url=message.serve_url))
            return _follow_after(ready, (Publish(_registration(ready)),), "engine is ready")
        case Prepared():
            return _prepared(state, message)
        case Activated():
            ack = structs.replace(
                _ack(state, message.epoch), activated=True, step=message.step, finished_unix_ns=message.unix_ns
            )
            if not state.active:  # it has crossed out with the others: nobody waits for it in a step any more
                parked, why = replace(state, ack=ack, parting=0), f"parked by epoch {message.epoch}"
                if state.leaving:
                    return parked, Decision((Publish(ack), Exit(f"left: {state.leaving}")), why)
                return _follow_after(parked, (Publish(ack),), why)
            running = replace(state, activated=message.epoch, ack=ack)
            hold_s = _hold_s(running, message.epoch)
            actions = (Publish(ack, hold_s), Publish(_registration(running), hold_s))
            return running, Decision(actions, f"runs under epoch {message.epoch} after {message.waited_ms:.1f} ms")
        case Fault(suspicions=()):  # it left on a peer's word; a report without evidence would only delay the peer's
            return state, Decision(reason=_blame(message))
        case Fault():
            return _accuse(state, event.now, message)
        case EngineStatus():
            return _status(state, event.now, message)
    assert_never(message)


def _hello(state: State, message: Hello) -> tuple[State, Decision]:
    if state.hello is None:
        known = replace(state, hello=message)
        return known, Decision((Publish(_registration(known)),), "engine is up; loading and warming")
    # The same engine on a new connection: what was said on the old one since it last crossed may be lost.
    again = replace(state, hello=message, asked=state.activated, crossed=state.activated, parting=0, farewell=None)
    return _follow_after(again, (), "engine is connected again")


def _follow_after(state: State, actions: tuple[Action, ...], reason: str) -> tuple[State, Decision]:
    """Do ``actions``, then bring the engine as far as the record has come."""
    if state.seen is None or not state.ready:
        return state, Decision(actions, reason)
    followed, decision = _follow(state, state.seen)
    return followed, Decision(
        (*actions, *decision.actions), f"{reason}; {decision.reason}" if decision.reason else reason
    )


def _prepared(state: State, message: Prepared) -> tuple[State, Decision]:
    if message.epoch != state.asked:
        return state, Decision(reason=f"late answer for epoch {message.epoch}, asked for {state.asked} since")
    ack = structs.replace(
        _ack(state, message.epoch),
        prepared=message.ok,
        error=message.error,
        loads=message.loads,
        missing=message.missing,
        started_unix_ns=message.started_unix_ns,
        finished_unix_ns=message.finished_unix_ns,
    )
    if not message.ok:
        return state, Decision((Publish(ack),), f"epoch {message.epoch} failed: {message.error}")
    prepared = replace(state, prepared=message.epoch, ack=ack)
    version, committed = (state.record.preparing, state.record.committed) if state.record else (None, None)
    decided = committed is not None and committed.epoch == message.epoch
    if decided and not message.missing and not ack.activated:
        # It is decided, so the engine crosses now: one acknowledgement says both, and the survivors have the processor.
        return prepared, Decision(reason=f"epoch {message.epoch} prepared")
    if version is not None and version.epoch == message.epoch and not state.among(version):
        return replace(prepared, farewell=ack), Decision((Send(Ask()),), "prepared to go; are there requests left?")
    hold_s = _hold_s(prepared, message.epoch) if ack.activated else 0.0
    return prepared, Decision((Publish(ack, hold_s),), f"epoch {message.epoch} prepared")


def _status(state: State, now: float, status: EngineStatus) -> tuple[State, Decision]:
    if state.farewell is None:
        return state, Decision()
    left = status.running + status.waiting
    if left:
        return state, Decision((WakeAt(now + state.policy.drain_poll_s),), f"{left} requests left before we can go")
    return replace(state, farewell=None), Decision((Publish(state.farewell),), "the last request has ended; may go")


# --- epochs ---------------------------------------------------------------------------------------------------------


def _epoch_seen(state: State, event: EpochSeen) -> tuple[State, Decision]:
    before = state.record
    if before is not None and _age(event.record) < _age(before):
        return state, Decision(reason="an older epoch record came late")
    was_active, gave_up = state.active, before.preparing if before else None
    seen = replace(state, seen=event)
    if state.accusation is not None and state.accusation.epoch < event.record.committed.epoch:
        seen = replace(seen, accusation=None)
    if not seen.ready:
        return seen, Decision(reason="epoch noted; the engine is not ready")
    if was_active and not seen.active and _against_our_will(seen, event.record.committed):
        return _excluded(seen, event)
    actions: list[Action] = []
    committed = event.record.committed
    dropped = gave_up is not None and event.record.preparing is None and committed.epoch < gave_up.epoch
    if dropped and gave_up is not None and seen.asked == gave_up.epoch:
        actions.append(Send(Discard(epoch=gave_up.epoch)))
        seen = replace(seen, asked=committed.epoch, farewell=None)
    seen, decision = _follow(seen, event)
    reason = decision.reason or (f"epoch {gave_up.epoch} rolled back" if dropped and gave_up else "nothing asked of us")
    return seen, Decision((*actions, *decision.actions), reason)


def _age(record: EpochRecord) -> tuple[int, int]:
    return record.committed.epoch, record.fence


def _against_our_will(state: State, version: EpochVersion) -> bool:
    """Whether we are out by exclusion: the planned epoch that lets us go is one that we were asked to prepare.

    A rank that was cut off from etcd may see only a later one, after the abort that excluded it.
    """
    return version.cut is Cut.ABORT or version.epoch != state.asked


def _excluded(state: State, event: EpochSeen) -> tuple[State, Decision]:
    """The others go on without us: whatever we still do must not reach them (invariant 6), and we come back anew."""
    reason = f"excluded by epoch {event.record.committed.epoch}: {event.record.committed.reason}"
    again = event.now + state.policy.first_backoff_s
    down = replace(state, running=0, hello=None, ready=False, activated=0, farewell=None, restart_at=again)
    actions: tuple[Action, ...] = (
        FenceEngine(reason),
        Publish(_registration(down)),
        ClearAway(reason),
        WakeAt(again),
    )
    if state.leaving:
        actions = (EndEngine(reason, fence=True), Exit(reason))
    return down, Decision(actions, reason)


def _follow(state: State, event: EpochSeen) -> tuple[State, Decision]:
    """Bring the engine as far as the record has come."""
    committed, preparing = event.record.committed, event.record.preparing
    counted_on = state.among(committed) or state.activated > 0
    if counted_on and committed.epoch > state.crossed:
        return _cross(state, committed, event.committed)
    if state.parting:
        return state, _part(state, event.record)
    if preparing is None or event.preparing is None or preparing.epoch <= state.asked:
        return state, Decision()
    if not (state.among(preparing) or state.active):
        return state, Decision()
    asked = replace(state, asked=preparing.epoch)
    return asked, Decision((_prepare(state, preparing, event.preparing),), f"prepares epoch {preparing.epoch}")


def _part(state: State, record: EpochRecord) -> Decision:
    """Let go, but the engine still waits for the flip that releases it: until then its slots are in use.

    A newer epoch is planned only when all who stay have crossed, and an abort does without the flip: then nobody waits
    for us in a step any more, and the flip may not come, because others who were let go with us are no more.
    """
    newest = record.preparing or record.committed
    if newest.epoch <= state.parting:
        return Decision()
    return Decision((CallOff(stamp_of(state.parting)),), "the others went on without the flip that let us go")


def _cross(state: State, version: EpochVersion, plan: Plan) -> tuple[State, Decision]:
    actions: list[Action] = []
    if version.cut is Cut.ABORT:
        actions.append(CallOff(version.stamp))  # first: whoever waits in a step leaves it now
    if version.epoch > state.asked:
        actions.append(_prepare(state, version, plan))
    actions += [Committed(version.epoch), Send(Commit(epoch=version.epoch, stamp=version.stamp, cut=version.cut))]
    crossed = replace(state, asked=max(state.asked, version.epoch), crossed=version.epoch)
    if not state.among(version):  # let go: the engine parks, and may be asked back as it is
        parting = version.epoch if state.activated < version.epoch else 0  # a peer may have told the engine first
        crossed = replace(crossed, activated=0, parting=parting, farewell=None)
        actions += _part(crossed, state.record).actions if state.record and parting else ()
        actions += [Exit(f"left: {state.leaving}")] if state.leaving and not parting else ()
    elif state.activated == version.epoch:  # a peer told the engine first: what we said that it holds is out of date
        actions.append(Publish(_registration(crossed)))
    return crossed, Decision(tuple(actions), f"crosses into epoch {version.epoch}: {version.reason}")


def _prepare(state: State, version: EpochVersion, plan: Plan) -> Send:
    return Send(
        Prepare(
            epoch=version.epoch,
            stamp=version.stamp,
            members=version.members,
            peers=plan.peers,
            placement=plan.placement,
            loads=plan.loads,
            cut=version.cut,
            deadline_s=state.policy.prepare_deadline_s,
            traceparent=state.record.traceparent if state.record else "",
        )
    )


def _leave(state: State, event: Leave) -> tuple[State, Decision]:
    leaving = replace(state, leaving=event.reason, leave_by=event.now + event.deadline_s)
    if not state.running or not (state.active or state.parting):
        return leaving, Decision(
            (EndEngine(event.reason, fence=False), Exit(event.reason)), "leaves; nobody counts on it"
        )
    drain = Send(Drain(deadline_s=event.deadline_s))
    return leaving, Decision((Publish(_registration(leaving)), drain, WakeAt(leaving.leave_by)), "asks to be drained")


# --- what is published ----------------------------------------------------------------------------------------------


def _registration(state: State) -> Registration:
    """The rank's registration as it stands now."""
    known = structs.replace(state.identity, incarnation=state.running, ready=state.ready, leaving=state.leaving)
    if state.hello is not None:
        shared = ("link_address", "layers", "experts", "slots", "expert_bytes", "model", "checkpoint")
        known = structs.replace(known, **{name: getattr(state.hello, name) for name in shared})
    if state.activated and state.record is not None and state.active:
        known = structs.replace(known, holds=state.record.committed.placement)
    return known


def _hold_s(state: State, epoch: Epoch) -> float:
    """How long an acknowledgement of ``epoch``'s crossing may be kept back: of a planned one the next waits for it."""
    record = state.record
    unplanned = record is not None and record.committed.epoch == epoch and record.committed.cut is Cut.ABORT
    return state.policy.ack_hold_s if unplanned else 0.0


def _ack(state: State, epoch: Epoch) -> Ack:
    """What was acknowledged of the epoch so far."""
    if state.ack is not None and (state.ack.epoch, state.ack.incarnation) == (epoch, state.running):
        return state.ack
    return Ack(rank=state.rank, incarnation=state.running, epoch=epoch, prepared=True)


def _accuse(state: State, now: float, fault: Fault) -> tuple[State, Decision]:
    untold = state.accusation.suspicions if state.accusation and state.accusation.epoch == fault.epoch else ()
    report = FaultReport(
        reporter=state.rank,
        incarnation=state.running,
        epoch=fault.epoch,
        step=fault.step,
        suspicions=(*untold, *(suspicion for suspicion in fault.suspicions if suspicion not in untold)),
        receive_wait_us=fault.receive_wait_us,
        detected_unix_ns=fault.detected_unix_ns,
    )
    state = replace(state, accusation=None)
    peers = state.seen.committed.peers if state.seen else ()
    ahead = turn(report, peers=peers, host=state.identity.host)
    if not ahead:
        return state, Decision((Publish(report),), _blame(fault))
    due = now + ahead * state.policy.accuse_turn_s
    waiting = replace(state, accusation=report, accuse_at=due)
    return waiting, Decision((WakeAt(due),), f"{_blame(fault)}; {ahead} others saw it and speak first")


def _blame(fault: Fault) -> str:
    named = ", ".join(f"{suspicion.rank} ({suspicion.evidence})" for suspicion in fault.suspicions)
    return f"step {fault.step} of epoch {fault.epoch} abandoned; suspects: {named or 'none'}"
