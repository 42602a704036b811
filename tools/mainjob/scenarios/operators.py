"""What operators ask for, and ranks that the policy keeps out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.mainjob.faults import Moment
from tools.mainjob.report import FaultReport
from tools.mainjob.scenarios.registry import scenario

if TYPE_CHECKING:
    from schemas.vocabulary import Rank
    from tools.mainjob.scene import Scene

_OPERATION_S = 120.0


@scenario()
async def drain(scene: Scene) -> None:
    """Drain under load, and rejoin: nobody waits."""
    rank = scene.pick()[0]
    moment = Moment.now()
    report = FaultReport("drain", rank)
    scene.reports.append(report)
    await scene.faults.done(f"/v1/ranks/{rank}:drain", "maintenance", within_s=_OPERATION_S)
    scene.tell(f"rank {rank}: drained")
    await scene.quiet()
    scene.watch_gaps(report, moment)
    await scene.faults.done(f"/v1/ranks/{rank}:rejoin", "repaired", within_s=_OPERATION_S)
    await scene.back(report, moment)


@scenario()
async def drain_refused(scene: Scene) -> None:
    """Drains are taken until one would leave experts without a slot: that one is refused and changes nothing."""
    drained: list[Rank] = []
    order = scene.pick(count=len(scene.ranks))
    for rank in order:
        before = await scene.instance.epoch()
        done = await scene.faults.ended(f"/v1/ranks/{rank}:drain", "one after the other", within_s=_OPERATION_S)
        if done["state"] == "refused":
            scene.tell(f"rank {rank}: drain refused: {done['message']}")
            break
        if done["state"] != "done":
            raise AssertionError(f"drain of rank {rank}: {done}")
        drained.append(rank)
    else:
        raise AssertionError("every rank could be drained")
    await scene.quiet(2.0)
    after = await scene.instance.epoch()
    if before is None or after is None or after.committed.epoch != before.committed.epoch:
        raise AssertionError(f"a refused drain changed the membership: {after}")
    for rank in drained:
        await scene.faults.done(f"/v1/ranks/{rank}:rejoin", "as you were", within_s=_OPERATION_S)
    await scene.back(None, None)


@scenario()
async def cordon(scene: Scene) -> None:
    """A cordoned rank that dies stays out until it is let in again."""
    rank = scene.pick()[0]
    await scene.faults.done(f"/v1/ranks/{rank}:cordon", "suspicious", within_s=_OPERATION_S)
    report, moment = await scene.lose("SIGKILL of a cordoned rank", rank, scene.faults.kill_rank)
    scene.watch_gaps(report, moment)
    await _stays_out(scene, rank, "is cordoned")
    await scene.faults.done(f"/v1/ranks/{rank}:uncordon", "innocent", within_s=_OPERATION_S)
    await scene.back(report, moment)


@scenario()
async def flapping(scene: Scene) -> None:
    """A rank that dies as often as the policy allows stays out until an operator lets it in."""
    rank = scene.pick()[0]
    await scene.faults.done(f"/v1/ranks/{rank}:uncordon", "earlier losses do not count here", within_s=_OPERATION_S)
    async with scene.faults.policy(flap_limit=2):
        await scene.kill_and_return("SIGKILL", rank, scene.faults.kill_rank)
        report, moment = await scene.lose("SIGKILL again", rank, scene.faults.kill_rank)
        scene.watch_gaps(report, moment)
        await _stays_out(scene, rank, "flaps")
        await scene.faults.done(f"/v1/ranks/{rank}:rejoin", "cable replaced", within_s=_OPERATION_S)
        await scene.back(report, moment)


async def _stays_out(scene: Scene, rank: Rank, why: str) -> None:
    """The rank's engine is up again, and for a while after no epoch takes it in."""
    async with scene.lighter():
        await scene.until_ready(rank)
    await scene.quiet(3.0)
    record = await scene.instance.epoch()
    if record is None or any(member.rank == rank for member in record.committed.members):
        raise AssertionError(f"rank {rank} {why}, and was taken back")
