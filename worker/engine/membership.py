"""Which epoch this engine runs under, which one it is preparing, and when it may cross.

Three threads meet here: the control thread hears of epochs, the preparing thread loads and stages, the stepping thread
crosses. The rules, all of ARCHITECTURE §3:

* epochs only grow; preparing a newer one first takes back what was staged for an older one;
* an epoch is crossed into only when it is staged here and known to be committed;
* the slots of the table in force and of the staged table are protected; a table is in force from ``cross`` until the
  stepping thread is parked (it has given up the step and will run nothing under that table again) or crosses onward.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.vocabulary import Cut
from worker.engine.errors import PrepareError
from worker.engine.tables import build_table, routed_slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from native.plane import DataPlane
    from schemas.placement import Placement
    from schemas.vocabulary import Epoch, Expert, Incarnation, Layer, Member, Rank
    from worker.engine.slots import SlotStore


@dataclass(frozen=True)
class View:
    """One epoch as this engine sees it.

    Attributes:
        epoch: its number; 0 before the first.
        members: active ranks and their processes.
        included: whether this process is one of them.
        missing: (layer, expert) pairs that no member's routed slot holds.
        cut: how ranks cross into it.
    """

    epoch: Epoch = 0
    members: tuple[Member, ...] = ()
    included: bool = False
    missing: tuple[tuple[Layer, Expert], ...] = ()
    cut: Cut = Cut.PLANNED

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
    _called_off: Epoch = 0
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
        return self._called_off > self.current.epoch

    def linkable(self) -> frozenset[tuple[Rank, Incarnation]]:
        """Who may have a link: members of the current epoch and of the one being prepared."""
        return self.current.identities | self._preparing.identities

    # --- the preparing thread -----------------------------------------------------------------------------------------

    def begin(self, epoch: Epoch, members: tuple[Member, ...], cut: Cut) -> None:
        """An epoch is to be prepared; take back what was staged for an older one.

        Raises:
            PrepareError: the epoch is not newer than the current one.
        """
        with self._changed:
            if epoch <= self.current.epoch:
                raise PrepareError(f"epoch {epoch} is not newer than the current {self.current.epoch}")
            self.staged = None
            self.store.protect("staged", None)
            self._preparing = View(epoch=epoch, members=members, cut=cut)
            if cut is Cut.ABORT:
                self._called_off = epoch
            self._changed.notify_all()
        self.on_change()

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
        view = View(
            epoch=preparing.epoch,
            members=preparing.members,
            included=included,
            missing=tuple(placement.missing(member.rank for member in preparing.members)),
            cut=preparing.cut,
        )
        with self._changed:
            if preparing is not self._preparing:
                raise PrepareError(f"epoch {preparing.epoch} was superseded by {self._preparing.epoch}")
            if included:
                self.group.stage(build_table(placement, epoch=view.epoch, members=view.members))
                self.store.protect("staged", routed_slots(placement, rank)[:, : self.store.held.shape[1]])
            self.staged = view
            self._changed.notify_all()
        self.on_change()
        return view

    # --- the control thread -------------------------------------------------------------------------------------------

    def commit(self, epoch: Epoch, cut: Cut) -> None:
        """An epoch is decided."""
        with self._changed:
            self._commit = max(self._commit, epoch)
            if cut is Cut.ABORT:
                self._called_off = max(self._called_off, epoch)
            self._changed.notify_all()
        self.on_change()

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
            if staged.included:
                self.group.activate(epoch)
            self.current, self.staged, self._parked = staged, None, False
            self.store.adopt("staged", "live")
            return True
