"""Prepares epochs beside the stepping thread: links, loads, table, in this order; the newest request wins."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from msgspec import structs

from schemas.messages import Prepare, Prepared
from schemas.placement import EMPTY, Placement, PlacementFormatError
from schemas.vocabulary import Cut
from worker.engine.errors import EngineError, PrepareError

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.messages import Load
    from schemas.records import AckPhase
    from worker.engine.links import Links
    from worker.engine.loader import Loader
    from worker.engine.membership import Membership
    from worker.engine.settings import EngineSettings

log = logging.getLogger("eep.engine")


class Preparing:
    """A thread that works on one ``Prepare`` at a time and drops it when a newer one comes."""

    def __init__(self, membership: Membership, links: Links, loader: Loader, settings: EngineSettings) -> None:
        self._membership = membership
        self._links = links
        self._loader = loader
        self._settings = settings
        self._newest: Prepare | None = None
        self._answer: Callable[[Prepared], None] = lambda _: None
        self._changed = threading.Condition()

    def start(self, answer: Callable[[Prepared], None]) -> None:
        """Begin to work; ``answer`` takes the outcome of each request."""
        self._answer = answer
        threading.Thread(target=self._work, name="eep-prepare", daemon=True).start()

    def submit(self, request: Prepare) -> None:
        """Prepare this epoch next; what is being prepared for an older one is given up.

        An epoch that the engine runs under ahead of the decision is in force at once.
        """
        self._membership.confirm(request.epoch, stamp=request.stamp)
        with self._changed:
            if self._newest is None or request.epoch > self._newest.epoch:
                self._newest = request
                self._changed.notify_all()

    def _work(self) -> None:
        done: Prepare | None = None
        while True:
            done = self._next(done)
            began = time.time_ns()
            outcome = self._outcome(done)
            self._answer(structs.replace(outcome, started_unix_ns=began, finished_unix_ns=time.time_ns()))

    def _next(self, done: Prepare | None) -> Prepare:
        with self._changed:
            while self._newest is None or self._newest is done:
                self._changed.wait()
            return self._newest

    def _outcome(self, request: Prepare) -> Prepared:
        try:
            return self._prepare(request, deadline=time.monotonic() + request.deadline_s)
        except (EngineError, PlacementFormatError, ValueError, RuntimeError, OSError) as error:
            log.warning("epoch %d not prepared: %s", request.epoch, error)
            return Prepared(epoch=request.epoch, ok=False, error=str(error) or type(error).__name__)

    def _prepare(self, request: Prepare, *, deadline: float) -> Prepared:
        def go_on() -> bool:
            return self._newest is request and time.monotonic() < deadline

        membership, rank = self._membership, self._settings.rank
        in_force = membership.current.epoch == request.epoch
        if not in_force:
            placement = Placement.from_wire(request.placement)
            self._check(placement)
            in_force = not membership.begin(request.epoch, request.members, request.cut, stamp=request.stamp)
        self._links.keep_only(membership.linkable())
        if in_force:
            return Prepared(epoch=request.epoch, ok=True)
        included = any(
            member.rank == rank and member.incarnation == self._settings.incarnation for member in request.members
        )
        spent: tuple[AckPhase, ...] = ()
        if included:
            others = [peer for peer in request.peers if peer.rank != rank]
            self._links.connect_all(others, epoch=request.epoch, go_on=go_on)
            target = placement.slots[:, rank, : self._settings.slots]
            loads = self._loader.wanted(target, request.loads)
            self._make_room(loads, request.cut, deadline)
            limit = self._settings.background_mb_per_s * 1e6 if request.cut is Cut.PLANNED else 0.0
            spent = self._loader.run(loads, go_on=go_on, bytes_per_s=limit)
        view = membership.stage(placement)
        return Prepared(epoch=view.epoch, ok=True, loads=spent, missing=view.missing)

    def _make_room(self, loads: list[Load], cut: Cut, deadline: float) -> None:
        """Under an abort cut the current table is dead once the stepping thread is parked: its slots are free then."""
        if cut is not Cut.ABORT or not any(self._loader.store.is_protected(load.layer, load.slot) for load in loads):
            return
        if not self._membership.wait_parked(deadline=deadline):
            raise PrepareError("the step under way did not end in time, its slots cannot be written")

    def _check(self, placement: Placement) -> None:
        held = self._loader.store.held
        wanted = (held.shape[0], self._settings.max_ranks, len(self._loader.manifest.checksums[0]))
        given = (placement.n_layers, placement.max_ranks, placement.n_experts)
        if wanted != given:
            raise PrepareError(f"the placement is for (layers, ranks, experts) = {given}, this engine for {wanted}")
        if (placement.slots[:, self._settings.rank, self._settings.slots :] != EMPTY).any():
            raise PrepareError(f"the placement fills slots beyond the {self._settings.slots} that this rank has")
