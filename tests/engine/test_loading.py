import os
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from schemas.messages import Load, Source
from schemas.placement import EMPTY
from schemas.vocabulary import SourceTier
from tests.engine.test_checkpoint import write
from worker.engine.backup import BackupFile, write_backup
from worker.engine.checkpoint import Checkpoint
from worker.engine.errors import LiveSlotError, NoSourceError, PrepareError, SourceError
from worker.engine.loader import Loader
from worker.engine.manifest import obtain
from worker.engine.slots import HostSlots, SlotLayout, SlotStore, expert_checksum

SLOTS = 4
PEER = Source(tier=SourceTier.HOST_PEER, rank=1, slot=2)
DISK = Source(tier=SourceTier.CHECKPOINT)


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


class Rig:
    """Two ranks' slots over one checkpoint of 2 MoE layers × 3 experts."""

    def __init__(self, folder):
        write(folder / "model")
        self.folder = folder
        self.checkpoint = Checkpoint(folder / "model")
        self.manifest = obtain(self.checkpoint, "float32", folder / "manifests")
        layout = SlotLayout(2, SLOTS, self.checkpoint.shape("float32"))
        self.ours, self.theirs = (SlotStore(HostSlots.create(layout, name)) for name in ("ours", "theirs"))
        self.alive = True
        clock = count()
        self.loader = Loader(
            self.ours,
            self.manifest,
            self.checkpoint,
            lambda rank: self.theirs.memory if self.alive else None,
            lambda: next(clock),
        )
        self.fill(self.theirs, layer=0, slot=2, expert=1)

    def fill(self, store, *, layer, slot, expert):
        with store.write(layer, slot, expert) as (w13, w2):
            self.checkpoint.read(self.checkpoint.layers[layer], expert, w13, w2, dtype="float32")

    def run(self, *sources, layer=0, slot=0, expert=1):
        load = Load(layer=layer, slot=slot, expert=expert, sources=tuple(sources))
        return self.loader.run([load], go_on=lambda: True)

    def holds(self, layer, slot):
        w13, w2 = self.ours.memory.blocks(layer, slot)
        found = [e for e in range(3) if expert_checksum(w13, w2) == self.manifest.checksum(layer, e)]
        assert found in ([], [int(self.ours.held[layer, slot])])
        return int(self.ours.held[layer, slot])


def test_a_live_peers_slot_is_copied_first(rig):
    (phase,) = rig.run(PEER, DISK)
    assert phase.tier is SourceTier.HOST_PEER
    assert (phase.slots, phase.bytes, phase.seconds) == (1, rig.ours.memory.layout.expert.nbytes, 1)
    assert rig.holds(0, 0) == 1


def test_a_dead_peer_falls_to_the_next_source(rig, caplog):
    rig.alive = False
    assert [phase.tier for phase in rig.run(PEER, DISK)] == [SourceTier.CHECKPOINT]
    assert rig.holds(0, 0) == 1
    assert "host_peer: rank 1 is not linked or not alive; the next source is tried" in caplog.text


class Time:
    """Passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_a_limited_transfer_takes_its_time(rig):
    time = Time()
    loader = replace(rig.loader, clock=time, sleep=time.sleep)
    loads = [Load(layer=0, slot=slot, expert=1, sources=(DISK,)) for slot in range(3)]
    size = rig.ours.memory.layout.expert.nbytes
    assert sum(phase.slots for phase in loader.run(loads, go_on=lambda: True, bytes_per_s=size * 4)) == 3
    assert time.now == pytest.approx(0.5)  # the third slot begins when two have been paid for
    rig.ours.held[:] = EMPTY
    with pytest.raises(PrepareError, match="superseded"):
        loader.run(loads, go_on=lambda: time.now < 0.7, bytes_per_s=size * 4)
    assert time.now == pytest.approx(0.7, abs=0.03)


def test_wrong_bytes_fall_to_the_next_source(rig):
    rig.theirs.memory.blocks(0, 2)[1][5] ^= 1
    assert [phase.tier for phase in rig.run(PEER, DISK)] == [SourceTier.CHECKPOINT]
    assert rig.holds(0, 0) == 1


def test_a_peer_that_holds_another_expert_falls_to_the_next_source(rig):
    rig.fill(rig.theirs, layer=0, slot=2, expert=0)
    assert [phase.tier for phase in rig.run(PEER, DISK)] == [SourceTier.CHECKPOINT]


def test_without_a_source_the_slot_is_empty_and_the_expert_named(rig):
    rig.fill(rig.ours, layer=0, slot=0, expert=2)
    rig.alive = False
    with pytest.raises(
        NoSourceError, match=r"layer 0 expert 1 \(host_peer: rank 1 is not linked or not alive\)"
    ) as caught:
        rig.run(PEER)
    assert [(layer, expert) for layer, expert, _ in caught.value.failures] == [(0, 1)]


def test_a_slot_half_written_by_a_failed_source_counts_as_empty(rig):
    rig.fill(rig.ours, layer=0, slot=0, expert=2)
    rig.theirs.memory.blocks(0, 2)[1][5] ^= 1
    with pytest.raises(NoSourceError, match="checksum differs"):
        rig.run(PEER)
    assert rig.holds(0, 0) == EMPTY


def test_the_same_rank_can_give(rig):
    rig.fill(rig.ours, layer=1, slot=3, expert=2)
    phases = rig.run(Source(tier=SourceTier.SAME_RANK, slot=3), layer=1, slot=1, expert=2)
    assert [phase.tier for phase in phases] == [SourceTier.SAME_RANK]
    assert rig.holds(1, 1) == 2


def test_the_backup_gives_what_it_has_and_corrupt_bytes_fall_to_the_next_source(rig):
    path = rig.folder / "backup"
    size = write_backup(path, rig.checkpoint, rig.manifest, [(0, 1), (1, 0)])
    assert size == path.stat().st_size
    kept = Source(tier=SourceTier.HOST_BACKUP, address=str(path))
    assert [phase.tier for phase in rig.run(kept, DISK)] == [SourceTier.HOST_BACKUP]
    assert [phase.tier for phase in rig.run(kept, DISK, layer=1, expert=1)] == [SourceTier.CHECKPOINT]
    with path.open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.write(b"\0\1\2")
    assert [phase.tier for phase in rig.run(kept, DISK, layer=1, slot=2, expert=0)] == [SourceTier.CHECKPOINT]


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64])
def test_a_file_that_is_no_backup_is_an_error(tmp_path, content):
    (tmp_path / "backup").write_bytes(content)
    with pytest.raises(SourceError):
        BackupFile(tmp_path / "backup")


def test_a_missing_checkpoint_is_one_more_failed_source(rig):
    rig.loader.checkpoint = None
    with pytest.raises(NoSourceError, match="this rank has no checkpoint"):
        rig.run(DISK)


@pytest.mark.parametrize("table", ["live", "staged"])
def test_a_slot_that_a_table_references_is_never_written(rig, table):
    rig.fill(rig.ours, layer=1, slot=0, expert=0)
    before = rig.ours.memory.bytes.copy()
    protected = np.zeros((2, SLOTS), dtype=bool)
    protected[1, 0] = True
    rig.ours.protect(table, protected)
    with pytest.raises(LiveSlotError, match="slot 0 of layer 1"):
        rig.run(DISK, layer=1, slot=0, expert=2)
    assert np.array_equal(rig.ours.memory.bytes, before)
    assert rig.holds(1, 0) == 0
    rig.ours.protect(table, None)
    rig.run(DISK, layer=1, slot=0, expert=2)
    assert rig.holds(1, 0) == 2


def test_only_what_differs_is_wanted_and_given_sources_are_kept(rig):
    rig.fill(rig.ours, layer=0, slot=0, expert=0)
    target = np.full((2, SLOTS), EMPTY, dtype=np.uint16)
    target[0, :3] = [0, 1, 2]
    given = Load(layer=0, slot=1, expert=1, sources=(PEER,))
    stale = Load(layer=0, slot=2, expert=1, sources=(PEER,))
    assert rig.loader.wanted(target, [given, stale]) == [given, Load(layer=0, slot=2, expert=2, sources=(DISK,))]


def test_loading_is_given_up_between_slots(rig):
    answers = iter([True, False])
    loads = [Load(layer=0, slot=slot, expert=slot, sources=(DISK,)) for slot in range(2)]
    with pytest.raises(PrepareError, match="given up"):
        rig.loader.run(loads, go_on=lambda: next(answers))
    assert rig.ours.held[0].tolist() == [0, EMPTY, EMPTY, EMPTY]


def test_slots_do_not_overlap_and_fill_the_memory():
    layout = SlotLayout(3, 5, _shape())
    owner = np.zeros(layout.nbytes, dtype=np.int32)
    for layer in range(3):
        for slot in range(5):
            for block in layout.blocks(layer, slot):
                assert not owner[block].any()
                owner[block] = 1 + layer * 5 + slot
    assert (owner > 0).sum() == 15 * layout.expert.nbytes


def _shape():
    from worker.engine.checkpoint import ExpertShape

    return ExpertShape(hidden=24, intermediate=7, dtype="bfloat16")


def test_a_manifest_is_made_once_and_again_when_the_checkpoint_changes(rig):
    folder = rig.folder / "manifests"
    (path,) = folder.glob("*.manifest")
    made = path.stat().st_mtime_ns
    again = obtain(Checkpoint(rig.folder / "model"), "float32", folder)
    assert (again, path.stat().st_mtime_ns) == (rig.manifest, made)
    assert again.digest == rig.manifest.digest
    write(rig.folder / "model", experts=4)
    assert obtain(Checkpoint(rig.folder / "model"), "float32", folder).digest != again.digest


def test_a_broken_manifest_is_made_anew(rig):
    (path,) = (rig.folder / "manifests").glob("*.manifest")
    path.write_bytes(b"not one")
    assert obtain(rig.checkpoint, "float32", rig.folder / "manifests") == rig.manifest
