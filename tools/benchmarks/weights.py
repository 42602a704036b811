"""Weight sources: seconds per GB of experts of realistic size from each tier, beside memcpy and disk in the same run.

The product's own loader fills one rank's slots, every expert verified by checksum. Tiers: another rank's slots (mapped
shared memory), the host's backup file (tmpfs), the checkpoint from the page cache, and the checkpoint from the disk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.messages import Load, Source
from schemas.vocabulary import SourceTier
from tools.benchmarks.provenance import provenance
from tools.models.random_moe import PRESETS, make
from worker.engine.backup import write_backup
from worker.engine.checkpoint import Checkpoint
from worker.engine.loader import Loader
from worker.engine.manifest import obtain
from worker.engine.slots import HostSlots, SlotLayout, SlotStore, expert_checksum

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from worker.engine.manifest import Manifest

_PEER = 1
_GB = 1e9
_READ = 4 << 20


@dataclass(frozen=True)
class Sources:
    """One model in every place it can be loaded from."""

    folder: Path
    backup: Path
    manifest: Manifest
    peer: HostSlots

    @classmethod
    def make(cls, folder: Path, backup: Path, seed: int) -> Sources:
        """Write the model, its manifest and its backup, and fill a peer's slots with all of it."""
        model = make(folder / "model", PRESETS["large-experts"], seed=seed)
        checkpoint = Checkpoint(model)
        manifest = obtain(checkpoint, "float32", folder)
        layers, experts = len(checkpoint.layers), checkpoint.n_experts
        write_backup(backup, checkpoint, manifest, [(layer, e) for layer in range(layers) for e in range(experts)])
        peer = HostSlots.create(SlotLayout(layers, experts, checkpoint.shape("float32")), "bench-peer")
        sources = cls(model, backup, manifest, peer)
        Loader(SlotStore(peer), manifest, checkpoint, lambda _: None).run(
            list(sources.loads(SourceTier.CHECKPOINT)), go_on=lambda: True
        )
        return sources

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        layout = self.peer.layout
        return layout.layers * layout.slots * layout.expert.nbytes

    def loads(self, tier: SourceTier) -> Iterator[Load]:
        """Everything, from one tier."""
        layout = self.peer.layout
        for layer in range(layout.layers):
            for expert in range(layout.slots):
                source = Source(tier=tier, rank=_PEER, slot=expert, address=str(self.backup))
                yield Load(layer=layer, slot=expert, expert=expert, sources=(source,))


@dataclass(frozen=True)
class Fill:
    """One filling of all slots: wall seconds, and bytes that came from a block device meanwhile."""

    seconds: float
    disk_bytes: int


def fill(sources: Sources, tier: SourceTier, *, cold: bool = False) -> Fill:
    """Fill slots that have been written before, as a serving rank's have; the result is verified."""
    memory = HostSlots.create(sources.peer.layout, "bench-slots")
    memory.bytes[:] = 0
    store = SlotStore(memory)
    loader = Loader(store, sources.manifest, Checkpoint(sources.folder), lambda _: sources.peer)
    if cold:
        drop(sources.folder)
    before, began = _disk_bytes(), time.perf_counter()
    (spent,) = loader.run(list(sources.loads(tier)), go_on=lambda: True)
    took = Fill(time.perf_counter() - began, _disk_bytes() - before)
    if spent.tier is not tier or spent.bytes != sources.nbytes:
        raise RuntimeError(f"{tier}: {spent.bytes} of {sources.nbytes} bytes came from {spent.tier}")
    memory.close()
    return took


def drop(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _disk_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(fields["read_bytes"])


def memcpy(nbytes: int) -> float:
    """Seconds of one ``memcpy`` between two buffers in use."""
    source, target = np.ones(nbytes, dtype=np.uint8), np.ones(nbytes, dtype=np.uint8)  # not zeros: those are untouched
    began = time.perf_counter()
    ctypes.memmove(target.ctypes.data, source.ctypes.data, nbytes)
    return time.perf_counter() - began


def checksum(sources: Sources) -> float:
    """Seconds to checksum every expert where it lies."""
    layout = sources.peer.layout
    began = time.perf_counter()
    for layer in range(layout.layers):
        for slot in range(layout.slots):
            expert_checksum(*sources.peer.blocks(layer, slot))
    return time.perf_counter() - began


def disk(folder: Path) -> tuple[float, int]:
    """Seconds to read the model's files one after the other with plain ``read``, none of it cached; and their bytes."""
    drop(folder)
    buffer, total = bytearray(_READ), 0
    began = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while count := stream.readinto(buffer):
                total += count
    return time.perf_counter() - began, total


def measure(folder: Path, backup: Path, *, seed: int, repeats: int) -> dict[str, Any]:
    """Everything in turns, so that a slow moment of the machine falls on all; medians."""
    sources = Sources.make(folder, backup, seed)
    size = sources.nbytes
    fill(sources, SourceTier.HOST_PEER)  # the first one pays for code and page tables
    plain: dict[str, list[float]] = {}
    read_back = 0

    def note(name: str, seconds: float, nbytes: int = size) -> None:
        plain.setdefault(name, []).append(seconds / (nbytes / _GB))

    for _ in range(repeats):
        note("memcpy", memcpy(size))
        note("checksum", checksum(sources))
        note("disk", *disk(sources.folder))
        note("peer_slot", fill(sources, SourceTier.HOST_PEER).seconds)
        note("host_backup", fill(sources, SourceTier.HOST_BACKUP).seconds)
        cold = fill(sources, SourceTier.CHECKPOINT, cold=True)
        note("checkpoint_disk", cold.seconds)
        read_back = cold.disk_bytes
        note("checkpoint_cached", fill(sources, SourceTier.CHECKPOINT).seconds)
    return {
        "expert_mb": round(sources.peer.layout.expert.nbytes / 1e6, 1),
        "total_mb": round(size / 1e6, 1),
        "repeats": repeats,
        "cold_bytes_from_disk": read_back,
        **report(plain),
    }


def report(plain: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians of s/GB, and each source's rate as a share of its floor's: memcpy, for the cold checkpoint the disk."""
    medians = {name: statistics.median(values) for name, values in plain.items()}
    floors = {"peer_slot": "memcpy", "host_backup": "memcpy", "checkpoint_cached": "memcpy", "checkpoint_disk": "disk"}
    return {
        "seconds_per_gb": {name: round(value, 4) for name, value in medians.items()},
        "share_of_floor": {name: round(medians[floor] / medians[name], 3) for name, floor in floors.items()},
    }


def main(argv: list[str]) -> int:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="tools/bench weights", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument("--repeats", type=int, default=5, help="medians over so many")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="eep-weights-") as disk_folder,
        tempfile.TemporaryDirectory(prefix="eep-weights-", dir="/dev/shm") as memory,
    ):
        found = measure(Path(disk_folder), Path(memory) / "backup.experts", seed=options.seed, repeats=options.repeats)
    print(f"{found['total_mb']:.0f} MB in experts of {found['expert_mb']} MB; every slot verified by checksum")
    for name, value in found["seconds_per_gb"].items():
        share = found["share_of_floor"].get(name)
        print(f"{name:18} {value:7.3f} s/GB" + (f"   {share:.0%} of its floor's rate" if share else ""))
    if options.json:
        options.json.write_text(json.dumps({**provenance("tools/bench weights"), **found}, indent=2) + "\n")
    return 0
