"""What the core knows: a fold of etcd, and since when this replica knows what has no time of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, wraps
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from schemas.policy import Spec
from schemas.records import RankView, Status
from schemas.vocabulary import RankState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from controlplane.coordinator.planning import Instance, Plan
    from schemas.operations import Operation, PastEpoch, Recovery
    from schemas.placement import Placement
    from schemas.records import Ack, Backup, EpochRecord, ExpertLoad, FaultReport, ReceiveWait, Record, Registration
    from schemas.vocabulary import Epoch, Fence, Incarnation, Rank

T = TypeVar("T")

SECOND = 1_000_000_000
"""ns; all times of the core are Unix ns as integers, so that runs are exactly repeatable."""


class Kind(Enum):
    """Which key of ``schemas.keys`` a change is about; the value is the name of the state's field."""

    SPEC = "spec"
    EPOCH = "record"
    STATUS = "status"
    RANK = "registrations"
    REPORT = "reports"
    ACK = "acks"
    OPERATION = "operations"
    RECOVERY = "recoveries"
    BACKUP = "backups"
    PLACEMENT = "placements"
    LOAD = "loads"
    WAIT = "waits"
    PAST = "past"
    """``history/<epoch>``: written and forgotten here, never folded: nothing is decided from it."""


Name: TypeAlias = "str | Rank | tuple[Epoch, Rank]"
"""What tells keys of one kind apart: an id, a rank, or (epoch, rank); empty for the single ones."""


@dataclass(frozen=True)
class Change:
    """One key changed; ``value`` is None when it was deleted."""

    kind: Kind
    name: Name
    value: Record | Placement | None
    revision: int


@dataclass(frozen=True)
class Observed:
    """etcd delivered changes (all of one revision together, or a first listing)."""

    now: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Tick:
    """Time passed."""

    now: int


@dataclass(frozen=True)
class Elected:
    """This replica leads under ``fence`` and has observed everything up to its election."""

    now: int
    fence: Fence


@dataclass(frozen=True)
class Deposed:
    """This replica does not lead any more."""

    now: int


@dataclass(frozen=True)
class Written:
    """``write`` was applied at ``revision``; 0 when a guard failed (what stands there now was observed before)."""

    now: int
    write: Write
    revision: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """A plan that takes long and that nobody waits for: worked out beside the decisions, answered by ``Planned``."""

    cause: str
    """The operation that asked for it; empty when it is for slow ranks' sake."""
    epoch: Epoch
    """An answer is about this epoch's table: void in another one."""
    instance: Instance
    live: Placement
    max_bytes: int
    views: tuple[RankView, ...] = ()
    """Ranks that are planned with another speed, as they will be shown once the plan is there."""


@dataclass(frozen=True)
class Planned:
    """``question`` was answered; without a plan ``why`` says what went wrong."""

    now: int
    question: Question
    plan: Plan | None
    why: str = ""


Event: TypeAlias = Observed | Tick | Elected | Deposed | Written | Planned


@dataclass(frozen=True, kw_only=True)
class Write:
    """The core's only instruction: one transaction, guarded by the fence and by each record it is based on."""

    reason: str
    decided: int
    record: EpochRecord | None = None
    """Guarded by the mod_revision of the epoch the core saw."""
    status: Status | None = None
    placements: tuple[Placement, ...] = ()
    past: PastEpoch | None = None
    recoveries: tuple[Recovery, ...] = ()
    operations: tuple[Operation, ...] = ()
    """Each guarded by the mod_revision the core saw."""
    forget: tuple[tuple[Kind, Name], ...] = ()
    """Keys to delete; an ACK is named by its epoch alone, and all of that epoch's go."""


@dataclass(frozen=True)
class Pace:
    """What was measured of one rank; both are parts of the time, 0 … 1."""

    waited_for: float
    """How much longer its peers wait for it than for the others: below 0 where they wait less."""
    waiting: float
    """How much longer it waits for the last of its peers than the others wait for theirs."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The receive-wait matrix as it was judged last (``slowness``), and the rows that it was judged by."""

    at: int
    waits: Mapping[Rank, tuple[ReceiveWait, ...]]
    subject: tuple[Epoch, str]
    """The epoch and the goal that it was judged under."""
    paces: Mapping[Rank, Pace]


class Alarm:
    """The earliest moment that a decision depends on: before it, nothing new is decided unless something happens."""

    def __init__(self) -> None:
        self.at = 0
        """0 while there is none."""

    def set(self, at: int) -> None:
        """Decide again at ``at``, or earlier."""
        self.at = min(self.at, at) if self.at else at


@dataclass(frozen=True)
class State:
    """Frozen: an event makes a new one. Everything but the last nine fields can be read back from etcd."""

    replica: str
    now: int = 0
    spec: Spec = field(default_factory=Spec)
    record: EpochRecord | None = None
    status: Status = field(default_factory=Status)
    registrations: Mapping[Rank, Registration] = field(default_factory=dict)
    reports: Mapping[Rank, FaultReport] = field(default_factory=dict)
    acks: Mapping[tuple[Epoch, Rank], Ack] = field(default_factory=dict)
    operations: Mapping[str, Operation] = field(default_factory=dict)
    recoveries: Mapping[str, Recovery] = field(default_factory=dict)
    backups: Mapping[Rank, Backup] = field(default_factory=dict)
    placements: Mapping[str, Placement] = field(default_factory=dict)
    loads: Mapping[Rank, ExpertLoad] = field(default_factory=dict)
    waits: Mapping[Rank, tuple[ReceiveWait, ...]] = field(default_factory=dict)
    """Each reporter's last rows of the receive-wait matrix, oldest first: one row alone decides nothing. Only the last
    stands in etcd; a successor waits for its own."""
    revisions: Mapping[tuple[Kind, Name], int] = field(default_factory=dict)
    pace: Judged | None = None
    """Follows from ``waits``; remembered because it is costly."""
    fence: Fence = 0
    """0 while this replica follows."""
    writing: bool = False
    """A transaction is under way: decide nothing until its outcome is known."""
    noticed: Mapping[str, int] = field(default_factory=dict)
    """When something without a time of its own was first seen here; a successor starts its own patience."""
    question: Question | None = None
    """What is being planned now, one thing at a time; a successor asks anew."""
    answer: Planned | None = None
    """The answer to ``question``, until a rule has used it."""
    shown: tuple[object, ...] = ()
    """What the ranks' views were last worked out from: as long as nothing of it changes they are right."""
    said: str = ""
    """The last reason, to say a new one once."""
    alarm: Alarm = field(default_factory=Alarm, compare=False, repr=False)
    """Set by every look at the clock (``reached``), so that no rule can forget to name its deadline."""

    @property
    def live(self) -> Placement | None:
        """The committed placement."""
        return self.placements.get(self.record.committed.placement) if self.record else None

    @cached_property
    def members(self) -> dict[Rank, Incarnation]:
        """Members of the committed epoch."""
        return {member.rank: member.incarnation for member in self.record.committed.members} if self.record else {}

    @cached_property
    def joining(self) -> dict[Rank, Incarnation]:
        """Members of the version being prepared."""
        preparing = self.record.preparing if self.record else None
        return {member.rank: member.incarnation for member in preparing.members} if preparing else {}

    @cached_property
    def failed_loads(self) -> dict[tuple[Epoch, Rank], Ack]:
        """Acknowledgements that name something which no source could give."""
        return {name: ack for name, ack in self.acks.items() if ack.missing}

    @property
    def next_epoch(self) -> Epoch:
        """The first number that was never used."""
        if self.record is None:
            return 1
        used = [self.record.committed.epoch, self.record.issued]
        if self.record.preparing:
            used.append(self.record.preparing.epoch)
        return max(used) + 1

    def view(self, rank: Rank) -> RankView:
        """What the leader last decided about ``rank``."""
        return self.views.get(rank) or RankView(rank=rank, state=RankState.EMPTY)

    @cached_property
    def views(self) -> dict[Rank, RankView]:
        """``status.ranks`` by rank."""
        return {view.rank: view for view in self.status.ranks}

    def reached(self, at: int) -> bool:
        """Whether it is ``at`` or later; rules look at the clock in no other way.

        If it is not, the answer will be another one then: the alarm is set, and the core is asked again.
        """
        if self.now >= at:
            return True
        self.alarm.set(at)
        return False

    def lasts(self, what: str, ns: int) -> bool:
        """Whether ``what`` was first noticed at least ``ns`` ago."""
        return what in self.noticed and self.reached(self.noticed[what] + ns)

    def since(self, what: str) -> int:
        """How long ago ``what`` was first noticed, ns, for words; 0 when it is not."""
        return self.now - self.noticed[what] if what in self.noticed else 0

    def notice(self, what: str) -> State:
        """The state that remembers since when ``what`` holds."""
        return self if what in self.noticed else replace(self, noticed={**self.noticed, what: self.now})

    def forget(self, prefix: str) -> State:
        """The state without what starts with ``prefix``."""
        kept = {what: at for what, at in self.noticed.items() if not what.startswith(prefix)}
        return self if len(kept) == len(self.noticed) else replace(self, noticed=kept)


def once(work: Callable[[State], T]) -> Callable[[State], T]:
    """Works a pure function of the state out once for each state: what every rank is asked about costs one look."""
    name = f"{work.__module__}.{work.__qualname__}"

    @wraps(work)
    def worked_out(state: State) -> T:
        known = state.__dict__
        if name not in known:
            known[name] = work(state)
        found: T = known[name]
        return found

    return worked_out
