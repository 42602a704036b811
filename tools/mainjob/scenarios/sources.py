"""Where weights come from fails: wrong bytes, no checkpoint, a source that dies while it is read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from schemas.vocabulary import SourceTier
from tools.mainjob.scenarios.registry import scenario

if TYPE_CHECKING:
    from pathlib import Path

    from tools.mainjob.scene import Scene

TRANSFER_S = 6.0


@scenario()
async def corrupt_backup(scene: Scene) -> None:
    """Every byte of the host-memory backup is wrong: checksums catch it, and the next source is used."""
    backup = scene.instance.folder / "backup.experts"
    _invert(backup)
    scene.tell("host-memory backup: overwritten")
    try:
        report, moment = await scene.lose_two("SIGKILL of two with a corrupt backup")
        await scene.quiet()
        scene.watch_gaps(report, moment)
        await scene.back(report, moment)
    finally:
        _invert(backup)
    await scene.describe()
    if report.coverage == "repaired" and not report.loaded_bytes.get("checkpoint"):
        raise AssertionError(f"experts were repaired from {report.loaded_bytes}, with a corrupt backup")


@scenario()
async def checkpoint_missing(scene: Scene) -> None:
    """The checkpoint is not there while a rank is lost: memory has what is needed; the rank returns when it is back."""
    model = scene.instance.model
    target = model.readlink()
    model.unlink()
    scene.tell("checkpoint: gone")
    try:
        report, moment = await scene.lose_two("SIGKILL of two without a checkpoint")
        await scene.quiet(2.0)
        scene.watch_gaps(report, moment)
    finally:
        model.symlink_to(target)
    scene.tell("checkpoint: back")
    await scene.back(report, moment)
    await scene.describe()
    if report.coverage not in ("intact", "repaired") or report.loaded_bytes.get("checkpoint"):
        raise AssertionError(f"coverage {report.coverage}, loaded {report.loaded_bytes}, without a checkpoint")


@scenario(transfer_s=TRANSFER_S)
async def source_dies(scene: Scene) -> None:
    """The rank from whose memory a returning rank copies its experts dies in the middle: the next source is used."""
    rank = scene.pick()[0]
    report, moment = await scene.lose("SIGKILL", rank, scene.faults.kill_rank)
    await scene.until_joining(rank)
    plan = await scene.loads_of(rank)
    copies = [
        (index, load.sources[0].rank)
        for index, load in enumerate(plan)
        if load.sources[0].tier is SourceTier.HOST_PEER and len(plan) // 4 <= index < len(plan) * 3 // 4
    ]
    if not copies:
        raise AssertionError(f"rank {rank} copies nothing from a peer: {plan}")
    index, source = scene.rng.choice(copies)
    there, preparing = await scene.incarnations(), await scene.preparing()
    await asyncio.sleep(TRANSFER_S * (index - 0.5) / len(plan))
    if await scene.preparing() != preparing:
        raise AssertionError(f"the transfer to rank {rank} was over before its source could be killed")
    scene.faults.kill_rank(source)
    scene.tell(f"rank {source}: SIGKILL while rank {rank} copies slot {index} of {len(plan)} from it")
    await scene.until_excluded(source, there[source])
    await scene.back(report, moment)
    said = scene.instance.engine_log(rank)
    fell = f"host_peer: rank {source} is not linked or not alive" in said
    planned_anew = (
        f"epoch {preparing} not prepared: given up" in said
    )  # the leader was faster: other sources for the rest
    if not (fell or planned_anew):
        raise AssertionError(f"rank {rank} went on as if rank {source} were alive")


def _invert(backup: Path) -> None:
    """Change every byte after the index; twice is as before."""
    whole = np.fromfile(backup, dtype=np.uint8)
    (index,) = whole[:8].view("<u8")
    with backup.open("r+b") as file:
        file.seek(8 + int(index))
        file.write((~whole[8 + int(index) :]).tobytes())
