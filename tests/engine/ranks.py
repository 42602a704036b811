"""Engines without SGLang: data plane, links, membership and lockstep of several ranks in one process."""

import contextlib
import threading
from pathlib import Path

import numpy as np

from native import _native
from schemas.messages import Peer, Prepare
from schemas.placement import EMPTY, Placement
from schemas.vocabulary import Cut, Member, stamp_of
from tests.engine.test_checkpoint import write
from worker.engine.checkpoint import Checkpoint
from worker.engine.links import Links
from worker.engine.loader import Loader
from worker.engine.lockstep import Lockstep
from worker.engine.manifest import obtain
from worker.engine.membership import Membership
from worker.engine.preparing import Preparing
from worker.engine.settings import EngineSettings
from worker.engine.slots import HostSlots, SlotLayout, SlotStore

LAYERS, EXPERTS, HIDDEN = 2, 6, 8


class OverError(Exception):
    """The test is over."""


def over(*_, **__):
    raise OverError


def until_over(work):
    """``work``, which ends silently when the test does."""

    def working(*arguments):
        with contextlib.suppress(OverError):
            work(*arguments)

    return working


class RankEngine:
    """One rank."""

    def __init__(self, folder, rank, incarnation, *, max_ranks, slots, strict=True):
        self.member = Member(rank, incarnation)
        self.said = []
        self.answers = {}
        self.begun = []
        self.news = threading.Condition()
        self.control = _native.ControlBlock.create(
            str(folder / f"c{rank}.{incarnation}"), rank=rank, incarnation=incarnation
        )
        checkpoint = Checkpoint(folder / "model")
        manifest = obtain(checkpoint, "float32", folder / "manifests")
        layout = SlotLayout(LAYERS, slots, checkpoint.shape("float32"))
        shape = _native.Shape(
            max_ranks=max_ranks, max_tokens=16, hidden=HIDDEN, max_topk=2, max_slots=slots, n_experts=EXPERTS,
            n_layers=LAYERS, dtype=_native.DType.FLOAT32,
        )  # fmt: skip
        self.group = _native.Group(
            rank=rank, incarnation=incarnation, shape=shape, control=self.control, timeout_s=2.0, hard_timeout_s=10.0
        )
        memory = HostSlots.create(layout, f"t{rank}")
        self.store = SlotStore(memory)
        self.membership = Membership(self.group, self.store, lambda: self.control.committed_epoch, lambda: None)
        self.address = str(folder / f"l{rank}.{incarnation}")
        self.links = Links(
            group=self.group,
            memory=memory,
            peer_slots=lambda layout, fd: HostSlots(layout, fd, writable=False),
            address=self.address,
            members=self.membership.linkable,
        )
        settings = EngineSettings(
            rank=rank, incarnation=incarnation, max_ranks=max_ranks, slots=slots, control_path="", agent_socket="",
            link_socket=self.address, serve_url="", model_path=str(folder / "model"), manifest_dir="",
        )  # fmt: skip
        self.preparing = Preparing(
            self.membership, self.links, Loader(self.store, manifest, checkpoint, self.links.memory), settings
        )
        self.preparing._work = until_over(self.preparing._work)
        self.preparing.start(self._answered)
        self.lockstep = Lockstep(
            group=self.group, control=self.control, membership=self.membership, max_tokens=16, strict=strict,
            tell=self.said.append, bury=self.links.bury,
        )  # fmt: skip

    def _answered(self, prepared):
        with self.news:
            self.answers[prepared.epoch] = prepared
            self.news.notify_all()

    def answer(self, epoch):
        with self.news:
            assert self.news.wait_for(lambda: epoch in self.answers, timeout=10), f"no answer for epoch {epoch}"
            return self.answers[epoch]

    def enter(self, tokens):
        """``lockstep.enter`` on a thread of its own."""
        self.begun.append(Stepping(self, tokens))
        return self.begun[-1]

    def close(self):
        """End the threads that wait for ever, and let go of all memory: in a rank, its process's end does both."""
        self.membership.wait_crossing = self.preparing._outcome = over
        with self.preparing._changed:
            self.preparing._newest = object()
            self.preparing._changed.notify_all()
        for stepping in self.begun:
            assert not stepping.waits(15.0), "a step does not end"
        self.links.close()
        self.group.close()
        self.store.memory.close()


class Stepping:
    """A step that somebody has begun."""

    def __init__(self, engine, tokens):
        self._rounds = None
        self._thread = threading.Thread(target=until_over(self._run), args=(engine, tokens), daemon=True)
        self._thread.start()

    def _run(self, engine, tokens):
        self._rounds = engine.lockstep.enter(tokens)

    def waits(self, seconds=0.3):
        self._thread.join(seconds)
        return self._thread.is_alive()

    def rounds(self, within=10.0):
        self._thread.join(within)
        assert not self._thread.is_alive(), "the step has not begun"
        return self._rounds


class Ranks:
    """Several of them, and an agent's part."""

    def __init__(self, folder: Path, count, *, max_ranks=4, slots=12, strict=True):
        write(folder / "model", layers=(1, 3), experts=EXPERTS, hidden=HIDDEN)
        self.folder, self.max_ranks, self.slots, self.strict = folder, max_ranks, slots, strict
        self.engines = {rank: self.start(rank, rank + 1) for rank in range(count)}

    def start(self, rank, incarnation):
        return RankEngine(
            self.folder, rank, incarnation, max_ranks=self.max_ranks, slots=self.slots, strict=self.strict
        )

    def placement(self, ranks, *, half=0):
        """Every expert on ``ranks``, in the first or the second half of their slots; a change goes to the other."""
        width = self.slots // 2
        dealt = Placement.round_robin(
            layers=LAYERS, experts=EXPERTS, ranks=ranks, max_ranks=self.max_ranks, slots=width
        )
        slots = np.full((LAYERS, self.max_ranks, self.slots), EMPTY, dtype=np.uint16)
        slots[:, :, half * width : (half + 1) * width] = dealt.slots
        return Placement(slots=slots, weights=np.where(slots == EMPTY, 0, 1).astype(np.uint16), n_experts=EXPERTS)

    def prepare(self, epoch, placement, ranks, *, cut=Cut.PLANNED, also=(), deadline_s=5.0, stamp=0):
        """Ask the members (and ``also``) to prepare; their answers by rank."""
        members = tuple(self.engines[rank].member for rank in ranks)
        request = Prepare(
            epoch=epoch,
            stamp=stamp or stamp_of(epoch),
            members=members,
            peers=tuple(
                Peer(rank=m.rank, incarnation=m.incarnation, host="h", link_address=self.engines[m.rank].address)
                for m in members
            ),
            placement=placement.wire,
            cut=cut,
            deadline_s=deadline_s,
        )
        asked = [*ranks, *also]
        for rank in asked:
            self.engines[rank].preparing.submit(request)
        return {rank: self.engines[rank].answer(epoch) for rank in asked}

    def commit(self, epoch, ranks, cut=Cut.PLANNED, *, stamp=0):
        for rank in ranks:
            self.engines[rank].control.commit(epoch)
            self.engines[rank].membership.commit(epoch, cut, stamp=stamp or stamp_of(epoch))

    def step(self, tokens):
        """Every rank of ``tokens`` (rank → tokens) enters a step; their rounds."""
        begun = {rank: self.engines[rank].enter(count) for rank, count in tokens.items()}
        return {rank: stepping.rounds() for rank, stepping in begun.items()}

    def epochs(self):
        return {rank: engine.membership.current.epoch for rank, engine in self.engines.items()}

    def close(self):
        for engine in self.engines.values():
            engine.close()
