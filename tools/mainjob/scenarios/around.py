"""What serves the ranks dies: control plane, gateway, etcd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.mainjob.report import FaultReport
from tools.mainjob.scenarios.registry import scenario

if TYPE_CHECKING:
    from schemas.vocabulary import Rank
    from tools.mainjob.faults import Moment
    from tools.mainjob.scene import Scene

ETCD_AWAY_S = 10.0


@scenario()
async def kill_leader_during_recovery(scene: Scene) -> None:
    """SIGKILL of the leading control plane right after that of a rank: the successor finishes the recovery."""
    rank = scene.pick()[0]
    leader = f"controlplane-{await scene.faults.leader()}"

    def both(hit: Rank) -> Moment:
        moment = scene.faults.kill_rank(hit)
        scene.instance.household.programs[leader].kill()
        return moment

    report, moment = await scene.lose("SIGKILL of rank and leader", rank, both)
    scene.faults.restart(leader)
    await scene.quiet()
    scene.watch_gaps(report, moment, seconds=5.0)
    await scene.back(report, moment)


@scenario(two_gateways=True)
async def kill_gateway(scene: Scene) -> None:
    """SIGKILL of a gateway; clients try again."""
    index = scene.rng.randrange(len(scene.instance.gateway_urls))
    scene.faults.kill_gateway(index)
    scene.tell(f"gateway {index}: SIGKILL")
    await scene.quiet(0.5)
    scene.faults.restart(f"gateway-{index}")
    await scene.instance.gateways_ready(within_s=60.0)
    await scene.quiet()


@scenario()
async def etcd_away(scene: Scene) -> None:
    """No etcd for ten seconds: the epoch that runs goes on."""
    before = await scene.instance.epoch()
    report = FaultReport("etcd away for 10 s", -1, epochs=(before.committed.epoch if before else 0,))
    scene.reports.append(report)
    moment = await scene.faults.stop_etcd(seconds=ETCD_AWAY_S)
    scene.tell("etcd: back after 10 s")
    await scene.quiet(3.0)
    scene.watch_gaps(report, moment, seconds=ETCD_AWAY_S + 3.0)
    await scene.back(None, None)
    after = await scene.instance.epoch()
    if before is None or after is None or after.committed.epoch != before.committed.epoch:
        raise AssertionError("etcd's absence changed the membership")


@scenario(etcd=3, longest_wait_s=4.0)
async def kill_etcd_leader(scene: Scene) -> None:
    """SIGKILL of etcd's leader of three, right after that of a rank: the recovery waits for the next one."""
    rank = scene.pick()[0]
    index = await scene.faults.etcd_leader()

    def both(hit: Rank) -> Moment:
        moment = scene.faults.kill_rank(hit)
        scene.faults.kill_etcd_member(index)
        return moment

    report, moment = await scene.lose("SIGKILL of rank and etcd leader", rank, both)
    scene.watch_gaps(report, moment)
    scene.faults.restart_etcd_member(index)
    await scene.back(report, moment)
