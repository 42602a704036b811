"""Which epoch this engine runs under, which one it is preparing, and when it may cross.

Three threads meet here: the control thread hears of epochs, the preparing thread loads and stages, the stepping thread
crosses. The rules, all of ARCHITECTURE §3:

* epochs only grow; preparing a newer one first takes back what was staged for an older one;
* an epoch is crossed into only when it is staged here and known to be committed;
* the slots of the table in force and of the staged table are protected; a table is in force from ``cross`` until the
  stepping thread is parked (it has given up the step and will run nothing under that table again) or crosses onward;
* when a rank is gone and every expert has a copy elsewhere, the others run the broken step again without it at once
  (``go_on_without``). What comes out is held until an epoch says the same: only the leader's transaction changes who is
  a member, but nobody has to wait for it in idleness. If it says something else, the step is run once more.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from schemas.vocabulary import Cut, stamp_of
from worker.engine.errors import PrepareError
from worker.engine.tables import build_table, routed_slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from native import _native
    from native.plane import DataPlane
    from schemas.placement import Placement
    from schemas.vocabulary import Epoch, Expert, Incarnation, Layer, Member, Rank, Stamp
    from worker.engine.slots import SlotStore


@dataclass(frozen=True)
class View:
    """One epoch as this engine sees it.

    Attributes:
        epoch: its number; 0 before the first.
        stamp: what the data plane knows it by.
        decided: False while the ranks run ahead of the decision: ``epoch`` is then the one before.
        members: active ranks and their processes.
        included: whether this process is one of them.
        missing: (layer, expert) pairs that no member's routed slot holds.
        cut: how ranks cross into it.
        table: its routing, where this process is a member.
    """

    epoch: Epoch = 0
    stamp: Stamp = 0
    decided: bool = True
    members: tuple[Member, ...] = ()
    included: bool = False
    missing: tuple[tuple[Layer, Expert], ...] = ()
    cut: Cut = Cut.PLANNED
    table: _native.Table | None = None

    @property
    def identities(self) -> frozenset[tuple[Rank, Incarnation]]:
        """(rank, incarnation) of every member."""
        return frozenset((member.rank, member.incarnation) for member in self.members)


@dataclass
class Membership:
    """Epoch state of one engine.

    Attributes:
        group: the data plane.
        store: our slots.
        committed_elsewhere: highest epoch that the control block says is committed.
        on_change: called after something the stepping thread may wait for has changed; it must not block.
    """

    group: DataPlane
    store: SlotStore
    committed_elsewhere: Callable[[], Epoch]
    on_change: Callable[[], None]
    current: View = field(default_factory=View)
    staged: View | None = None
    _preparing: View = field(default_factory=View)
    _commit: Epoch = 0
    _called_off: Stamp = 0
    _parked: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    # --- what anyone may ask ------------------------------------------------------------------------------------------

    @property
    def committed(self) -> Epoch:
        """Highest epoch known to be committed."""
        return max(self._commit, self.committed_elsewhere())

    @property
    def prepared(self) -> Epoch:
        """Highest epoch this engine could run under now."""
        staged = self.staged
        return self.current.epoch if staged is None else staged.epoch

    @property
    def crossing(self) -> bool:
        """A newer epoch is committed and staged here."""
        staged = self.staged
        return staged is not None and staged.epoch <= self.committed

    @property
    def called_off(self) -> bool:
        """A newer epoch with an abort cut is under way: nothing may run under the current one."""
        return self._called_off > self.current.stamp

    def linkable(self) -> frozenset[tuple[Rank, Incarnation]]:
        """Who may have a link: members of the current epoch and of the one being prepared."""
        return self.current.identities | self._preparing.identities

    # --- the preparing thread -----------------------------------------------------------------------------------------

    def begin(self, epoch: Epoch, members: tuple[Member, ...], cut: Cut, *, stamp: Stamp) -> bool:
        """An epoch is to be prepared; take back what was staged for an older one.

        Returns:
            False when there is nothing to prepare: the stepping thread went on with just this, maybe this moment.

        Raises:
            PrepareError: the epoch is not newer than the current one, or leaves out another rank than this engine did;
                a version with a stamp of its own ends that.
        """
        with self._changed:
            if self.confirm(epoch, stamp=stamp):
                return False
            if epoch <= self.current.epoch:
                raise PrepareError(f"epoch {epoch} is not newer than the current {self.current.epoch}")
            if stamp <= self.current.stamp:
                raise PrepareError(f"epoch {epoch} leaves out one rank, this engine went on without another one")
            self.staged = None
            self.store.protect("staged", None)
            self._preparing = View(epoch=epoch, stamp=stamp, members=members, cut=cut)
            if cut is Cut.ABORT:
                self._called_off = stamp
            self._changed.notify_all()
        self.on_change()
        return True

    def wait_parked(self, *, deadline: float) -> bool:
        """Wait until the stepping thread runs nothing under the current table; False when the deadline passed first."""
        with self._changed:
            if self.current.epoch == 0:
                return True
            return self._changed.wait_for(lambda: self._parked, timeout=max(0.0, deadline - time.monotonic()))

    def stage(self, placement: Placement) -> View:
        """Everything that the epoch being prepared needs is here: it may be crossed into once committed.

        Raises:
            PrepareError: it was superseded meanwhile.
        """
        preparing = self._preparing
        rank = self.group.rank
        included = (rank, self.group.incarnation) in preparing.identities
        table = build_table(placement, stamp=preparing.stamp, members=preparing.members) if included else None
        view = replace(
            preparing,
            included=included,
            missing=tuple(placement.missing(member.rank for member in preparing.members)),
            table=table,
        )
        with self._changed:
            if preparing is not self._preparing:
                raise PrepareError(f"epoch {preparing.epoch} was superseded by {self._preparing.epoch}")
            if table is not None:
                self.group.stage(table)
                self.store.protect("staged", routed_slots(placement, rank)[:, : self.store.held.shape[1]])
            self.staged = view
            self._changed.notify_all()
        self.on_change()
        return view

    # --- the control thread -------------------------------------------------------------------------------------------

    def commit(self, epoch: Epoch, cut: Cut, *, stamp: Stamp) -> None:
        """An epoch is decided."""
        with self._changed:
            self._commit = max(self._commit, epoch)
            if cut is Cut.ABORT:
                self._called_off = max(self._called_off, stamp)
            self._changed.notify_all()
        self.on_change()

    def confirm(self, epoch: Epoch, *, stamp: Stamp) -> bool:
        """``epoch`` is decided: whether it is what this engine runs under already, ahead of the decision.

        Whatever was being prepared beside it has been given up.
        """
        with self._changed:
            if self.current.decided or self.current.stamp != stamp:
                return False
            self.current = replace(self.current, epoch=epoch, decided=True, cut=Cut.ABORT)
            self.staged, self._preparing = None, self.current
            self.store.protect("staged", None)
            self._commit = max(self._commit, epoch)
            self._changed.notify_all()
        self.on_change()
        return True

    def discard(self, epoch: Epoch) -> None:
        """A planned epoch was rolled back."""
        with self._changed:
            if self._preparing.epoch == epoch:
                self._preparing = View()
            if self.staged is not None and self.staged.epoch == epoch:
                self.staged = None
                self.store.protect("staged", None)

    def commit_known(self, epoch: Epoch) -> None:
        """A peer's row says that an epoch is committed."""
        with self._changed:
            self._commit = max(self._commit, epoch)

    # --- the stepping thread ------------------------------------------------------------------------------------------

    def park(self) -> None:
        """Nothing will run under the current table any more: its slots may be written."""
        with self._changed:
            self._parked = True
            self.store.protect("live", None)
            self._changed.notify_all()

    def go_on_without(self, rank: Rank) -> bool:
        """Run on under the current epoch without ``rank``, before that is decided; False when it cannot be.

        Every rank that is left comes to the same table by itself. It uses no slot that the current one does not use.
        """
        with self._changed:
            view = self.current
            held_up = self._parked or self.called_off or self.crossing or not view.decided
            if held_up or view.table is None or view.missing or rank not in view.table.active:
                return False
            table = view.table.without(rank, epoch=stamp_of(view.epoch, without=rank))
            if table.missing:
                return False
            self.group.stage(table)
            self.group.activate(table.epoch)
            members = tuple(member for member in view.members if member.rank != rank)
            self.current = replace(view, stamp=table.epoch, decided=False, members=members, table=table)
            return True

    def wait_verdict(self, *, timeout_s: float) -> bool:
        """Wait until it is decided what the current table is worth; False when the time was over first."""
        with self._changed:
            return self._changed.wait_for(lambda: self.current.decided or self.overruled, timeout=timeout_s)

    @property
    def overruled(self) -> bool:
        """Something else was decided than what this engine runs under."""
        return self.called_off or self.crossing

    def wait_crossing(self, *, timeout_s: float) -> bool:
        """Wait until a newer epoch is staged and committed."""
        with self._changed:
            return self._changed.wait_for(lambda: self.crossing, timeout=timeout_s)

    def cross(self, epoch: Epoch) -> bool:
        """Make the staged epoch current, between steps; False when it is not ``epoch`` or not committed."""
        with self._changed:
            staged = self.staged
            if staged is None or staged.epoch != epoch or epoch > self.committed:
                return False
            if staged.table is not None:
                if self.group.staged_epoch != staged.stamp:  # another one was staged since, for a rank that went
                    self.group.stage(staged.table)
                self.group.activate(staged.stamp)
            self.current, self.staged, self._parked = staged, None, False
            self.store.adopt("staged", "live")
            return True
