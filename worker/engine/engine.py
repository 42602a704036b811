"""The engine inside SGLang's scheduler process: builds the parts, and is what the hooks call."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from native import _native
from schemas.messages import EngineStatus, Hello
from worker.engine import pages, seams
from worker.engine.checkpoint import Checkpoint
from worker.engine.control import Control
from worker.engine.device import device_of
from worker.engine.errors import EngineError, StepAbandonedError
from worker.engine.gloo import share_loop
from worker.engine.layers import MoELayers
from worker.engine.links import Links
from worker.engine.loader import Loader
from worker.engine.lockstep import Lockstep
from worker.engine.manifest import obtain
from worker.engine.membership import Membership
from worker.engine.output import Output
from worker.engine.plugin import or_leave
from worker.engine.preparing import Preparing
from worker.engine.settings import Missing
from worker.engine.slots import SlotStore
from worker.engine.support import check_arguments, check_scheduler, tie_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from native.plane import DataPlane
    from worker.engine.settings import EngineSettings

log = logging.getLogger("eep.engine")

_SWITCH_S = 0.0005
"""How long another Python thread may keep the interpreter from the stepping thread (default 5 ms: a decode step)."""
_LINGER_MS = 20
"""How long an idle rank stays at hand for a peer's next step before it goes back to SGLang's own idle loop."""


class Engine:
    """One rank's engine; lives as long as the scheduler process."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.device = device_of(settings)
        self.layers = MoELayers(settings, Checkpoint(Path(settings.model_path)), self.device)
        if self.device.needs_plane_for_warm_up:
            self.layers.built = self._open_plane
        self.lockstep: Lockstep | None = None
        self._scheduler: Any = None
        self._block: _native.ControlBlock  # from ``start`` on
        self._plane: DataPlane | None = None
        self._control: Control | None = None
        self._in_step = False
        self._bell = Bell()
        self.output = Output()

    # --- hooks --------------------------------------------------------------------------------------------------------

    def start(self, original: Callable[..., None], scheduler: Any, server_args: Any, *args: Any, **kwargs: Any) -> None:
        """Scheduler.__init__: build the model with slots, then join the instance."""
        check_arguments(server_args, device=self.settings.device)
        self._block = _native.ControlBlock.attach(self.settings.control_path)
        original(scheduler, server_args, *args, **kwargs)
        check_scheduler(scheduler)
        tie_head(scheduler.tp_worker.model_runner.model)
        self.layers.finish()
        self._scheduler = scheduler
        self.output.open(scheduler)
        self._join(scheduler)

    def tick(self, *_args: Any, **_kwargs: Any) -> None:
        """Scheduler.ingest_requests: the scheduler's loop turns."""
        if self._control is not None:
            self._control.ticked()

    def begin_step(self, original: Callable[..., Any], adapter: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """SchedulerDPAttnAdapter.maybe_prepare_mlp_sync_batch: nobody steps alone."""
        batch = original(adapter, batch, *args, **kwargs)
        lockstep = self.lockstep
        if lockstep is None:
            return batch
        if batch is not None:
            lockstep.enter(_tokens(batch))
            self._in_step = True
        elif not getattr(self._scheduler, "result_queue", None):
            # With overlap scheduling the last tokens of our last request may still wait to be sent: SGLang does that in
            # this turn of its loop, which must not become as long as our peers' work.
            self._serve_peers(lockstep)
        return batch

    def forward(self, original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
        """ModelRunner.forward: a step without every contribution is run again, under the next epoch."""
        lockstep = self.lockstep
        plane = self._plane
        if lockstep is None or plane is None or not self._in_step:
            return original(runner, *args, **kwargs)
        batch = kwargs["forward_batch"] if "forward_batch" in kwargs else args[0]
        self._in_step = False
        while True:
            try:
                decoding = batch.forward_mode.is_decode()
                self.device.entered(lockstep.membership.current, tokens=int(batch.batch_size) if decoding else None)
                result = original(runner, *args, **kwargs)
                self.device.settle(plane)
                lockstep.hold()
                return result  # noqa: TRY300
            except StepAbandonedError as failure:
                lockstep.abandon(failure)
                lockstep.enter(len(batch.input_ids))

    def rounds(self) -> int:
        """Rounds of every layer in the step under way."""
        return self.layers.rounds()

    # --- stepping for others ------------------------------------------------------------------------------------------

    def _serve_peers(self, lockstep: Lockstep) -> None:
        """Take part in every step that peers begin, until a request of our own comes or they rest."""
        self._bell.silence()
        while lockstep.wanted():
            if not self._serve_one(lockstep):
                return
            patience = 0 if lockstep.wanted() else _LINGER_MS  # asking makes a peer that begins ring our doorbell
            if self._own_work_within(patience):
                return

    def _serve_one(self, lockstep: Lockstep) -> bool:
        """One step without a token of our own; False when nobody has one."""
        try:
            if lockstep.enter(0) == 0:
                return False
            self.device.entered(lockstep.membership.current, tokens=None)
            self.layers.serve_peers()
            if self._plane is not None:
                self.device.settle(self._plane)
        except StepAbandonedError as failure:
            lockstep.abandon(failure)
        return True

    def _own_work_within(self, milliseconds: int) -> bool:
        """Wait for a doorbell or a request; True when SGLang's loop has something to read."""
        poller = self._scheduler.idle_sleeper.poller
        return any(not isinstance(source, int) for source, _ in poller.poll(milliseconds))

    # --- joining ------------------------------------------------------------------------------------------------------

    def _join(self, scheduler: Any) -> None:
        settings, layers = self.settings, self.layers
        memory = layers.memory
        if memory is None:
            raise EngineError(f"model {settings.model_path} has no MoE layer. Remedy: serve a Mixture-of-Experts model")
        layout = memory.layout
        control = self._block
        control.phase = _native.Phase.LOADING
        control.engine_pid = os.getpid()
        manifest = obtain(layers.checkpoint, layout.expert.dtype, Path(settings.manifest_dir))
        if self._plane is None:
            self._open_plane()
        self.device.prepare_idle(layers.empty_step)
        group = self._plane
        if group is None:
            raise EngineError("the data plane did not open. Remedy: see the log above")
        store = SlotStore(memory)
        membership = Membership(group, store, lambda: control.committed_epoch, self._bell.ring)
        links = Links(
            group=group,
            memory=memory,
            peer_slots=self.device.peer_slots,
            address=settings.link_socket,
            members=membership.linkable,
        )
        loader = Loader(store, manifest, layers.checkpoint, links.memory)
        hello = Hello(
            rank=settings.rank,
            incarnation=settings.incarnation,
            pid=os.getpid(),
            link_address=settings.link_socket,
            layers=layout.layers,
            experts=layers.checkpoint.n_experts,
            slots=settings.slots,
            expert_bytes=layout.expert.nbytes,
            model=settings.model_path,
            checkpoint=manifest.digest,
        )
        self._control = Control(
            settings=settings,
            hello=hello,
            block=control,
            membership=membership,
            preparing=Preparing(membership, links, loader, settings),
            status=lambda: self._status(group, membership, control),
        )
        self.lockstep = Lockstep(
            group=group,
            control=control,
            membership=membership,
            max_tokens=settings.max_tokens,
            strict=settings.missing_experts is Missing.STRICT,
            tell=self._control.tell,
            bury=links.bury,
        )
        self._attach(scheduler, group, membership)
        control.phase = _native.Phase.SERVING
        self._control.start()

    def _open_plane(self) -> None:
        """The data plane, and every layer's dispatcher on it."""
        layers = self.layers
        self._plane = self.device.plane(
            self.settings, layers.layers, experts=layers.checkpoint.n_experts, control=self._block
        )
        for dispatcher in layers.dispatchers:
            dispatcher.attach(self._plane)

    def _attach(self, scheduler: Any, group: DataPlane, membership: Membership) -> None:
        lockstep = self.lockstep
        for dispatcher in self.layers.dispatchers:
            dispatcher.join(membership)
        if lockstep is not None:
            self.layers.rounds = lambda: lockstep.rounds
        poller = scheduler.idle_sleeper.poller
        poller.register(group.doorbell_fd(), zmq.POLLIN)
        poller.register(self._bell.fd, zmq.POLLIN)
        sys.setswitchinterval(_SWITCH_S)
        gc.collect()
        gc.freeze()  # the model and SGLang's modules stay; a collection that walks them is a gap in everybody's stream
        began = time.monotonic()
        log.info("%d MiB in large pages after %.0f ms", pages.collapse() >> 20, (time.monotonic() - began) * 1e3)

    def _status(self, group: DataPlane, membership: Membership, control: _native.ControlBlock) -> EngineStatus:
        scheduler = self._scheduler
        return EngineStatus(
            epoch=membership.current.epoch,
            prepared=membership.prepared,
            step=self.lockstep.steps if self.lockstep else 0,
            running=len(scheduler.running_batch.reqs),
            waiting=len(scheduler.waiting_queue),
            draining=self._control is not None and self._control.draining,
            tokens_per_expert=bytes(memoryview(group.tokens_per_expert()).cast("B")),
            masked=group.counters()["masked"] + sum(dispatcher.left_out for dispatcher in self.layers.dispatchers),
            receive_wait_us=tuple(control.receive_wait_us()[: self.settings.max_ranks]),
        )


class Bell:
    """Wakes the scheduler's idle sleep from another thread."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """Make ``fd`` readable."""
        os.eventfd_write(self.fd, 1)

    def silence(self) -> None:
        """Make it unreadable again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)


def _tokens(batch: Any) -> int:
    """Rows that the forward of a batch will have."""
    if batch.forward_mode.is_extend():
        return int(batch.extend_num_tokens)
    return int(batch.batch_size())


def register(settings: EngineSettings) -> None:
    """Put every hook of the scheduler process in place.

    Raises:
        EngineError: SGLang differs from what this was written for, or the checkpoint cannot be served.
    """
    share_loop()
    engine = Engine(settings)
    layers = engine.layers
    seams.install(
        [
            (seams.SLOTS, or_leave(layers.construct)),
            (seams.LOAD, or_leave(layers.load)),
            (seams.LOAD_FUSED, or_leave(layers.load_fused)),
            (seams.ROUNDS, layers.forward),
            (seams.COMPUTE, layers.compute),
            (seams.DISPATCHER, layers.make_dispatcher),
            (seams.LOCKSTEP, engine.begin_step),
            (seams.FORWARD, engine.forward),
            (seams.READY, or_leave(engine.start)),
            (seams.TICK, engine.tick),
            (seams.OUTPUT, engine.output.stream),
            *engine.device.seams(engine.rounds),
        ]
    )
