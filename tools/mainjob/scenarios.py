"""What can go wrong, one function each: under checked load, to the end, with every rank back (or as the name says)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import structs

from tools.loadgen import Load, Outcome
from tools.mainjob.faults import Moment
from tools.mainjob.report import FaultReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from schemas.vocabulary import Rank
    from tools.loadgen import Answer
    from tools.mainjob.scene import Scene

    Run = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """One thing that goes wrong, and the instance it needs.

    Attributes:
        name: as typed.
        run: makes it happen and follows it to the end; raises ``AssertionError`` where the system did not do its part.
        etcd: members of etcd.
        gateways: how many; with two, clients retry at the other.
        policy: settings of ``[policy]``.
    """

    name: str
    run: Run
    etcd: int = 1
    gateways: int = 1
    policy: dict[str, Any] = field(default_factory=dict)


SCENARIOS: dict[str, Scenario] = {}


def scenario(**needs: Any) -> Callable[[Run], Run]:
    """Make a scenario known by its function's name."""

    def enter(run: Run) -> Run:
        name = run.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, run, **needs)
        return run

    return enter


@scenario()
async def kill_one(scene: Scene) -> None:
    """SIGKILL of one rank."""
    await scene.kill_and_return("SIGKILL", scene.pick()[0], scene.faults.kill_rank)


@scenario()
async def kill_two(scene: Scene) -> None:
    """SIGKILL of two ranks at once."""
    first, second = scene.pick(count=2)

    def both(rank: Rank) -> Moment:
        moment = scene.faults.kill_rank(rank)
        scene.faults.kill_rank(second)
        return moment

    report, moment = await scene.lose("SIGKILL of two", first, both)
    await scene.until_excluded(second, after=report.epochs[0])
    await scene.quiet()
    scene.watch_gaps(report, moment)
    await scene.back(report, moment)


@scenario()
async def kill_during_recovery(scene: Scene) -> None:
    """SIGKILL of a second rank some milliseconds after the first, while the others recover."""
    first, second = scene.pick(count=2)
    before = await scene.instance.epoch()
    moment = scene.faults.kill_rank(first)
    await asyncio.sleep(scene.rng.uniform(0.005, 0.08))
    scene.faults.kill_rank(second)
    scene.tell(f"ranks {first} and, during its recovery, {second}: SIGKILL")
    epoch = before.committed.epoch if before else 0
    await scene.until_excluded(first, after=epoch)
    await scene.until_excluded(second, after=epoch)
    report = FaultReport("SIGKILL during recovery", first, epochs=(epoch,))
    scene.reports.append(report)
    await scene.quiet()
    scene.watch_gaps(report, moment)
    await scene.back(report, moment)


@scenario()
async def kill_during_rejoin(scene: Scene) -> None:
    """SIGKILL of another rank while the first one is being taken back."""
    first, second = scene.pick(count=2)
    report, moment = await scene.lose("SIGKILL", first, scene.faults.kill_rank)
    await _until_joining(scene, first)
    await asyncio.sleep(scene.rng.uniform(0.0, 0.05))
    scene.faults.kill_rank(second)
    scene.tell(f"rank {second}: SIGKILL while rank {first} rejoins")
    await scene.until_excluded(second, after=report.epochs[0])
    await scene.back(report, moment)


@scenario()
async def kill_a_joining_rank(scene: Scene) -> None:
    """SIGKILL of a rank while it is being taken back itself."""
    rank = scene.pick()[0]
    report, moment = await scene.lose("SIGKILL", rank, scene.faults.kill_rank)
    await _until_joining(scene, rank)
    await asyncio.sleep(scene.rng.uniform(0.0, 0.05))
    scene.faults.kill_rank(rank)
    scene.tell(f"rank {rank}: SIGKILL while it rejoins")
    await scene.back(report, moment)


@scenario()
async def zombie(scene: Scene) -> None:
    """SIGSTOP of a rank past its deadline, then SIGCONT: what it still does must reach nobody."""
    rank = scene.pick()[0]
    pid = scene.instance.scheduler(rank).pid
    report, moment = await scene.lose("SIGSTOP", rank, scene.faults.stop_rank)
    await scene.quiet()
    scene.watch_gaps(report, moment, seconds=5.0)
    scene.faults.wake_rank(rank, pid)
    scene.tell(f"rank {rank}: SIGCONT")
    await scene.back(report, moment)


@scenario()
async def kill_agent(scene: Scene) -> None:
    """SIGKILL of a worker agent; something starts it again, as systemd does."""
    rank = scene.pick()[0]
    report, moment = await scene.lose("SIGKILL of the agent", rank, scene.faults.kill_agent)
    scene.faults.restart_agent(rank)
    await scene.quiet()
    scene.watch_gaps(report, moment)
    await scene.back(report, moment)


@scenario()
async def kill_http(scene: Scene) -> None:
    """SIGKILL of the engine's HTTP process only."""
    await scene.kill_and_return("SIGKILL of HTTP", scene.pick()[0], scene.faults.kill_http)


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


@scenario(gateways=2)
async def kill_gateway(scene: Scene) -> None:
    """SIGKILL of a gateway; clients try again."""
    scene.faults.kill_gateway(0)
    scene.tell("gateway 0: SIGKILL")
    await scene.quiet(0.5)
    scene.faults.restart("gateway-0")
    await scene.instance.gateways_ready(within_s=60.0)
    await scene.quiet()


@scenario()
async def etcd_away(scene: Scene) -> None:
    """No etcd for ten seconds: the epoch that runs goes on."""
    before = await scene.instance.epoch()
    report = FaultReport("etcd away for 10 s", -1, epochs=(before.committed.epoch if before else 0,))
    scene.reports.append(report)
    moment = await scene.faults.stop_etcd(seconds=10.0)
    scene.tell("etcd: back after 10 s")
    await scene.quiet(3.0)
    scene.watch_gaps(report, moment, seconds=13.0)
    await scene.back(None, None)
    after = await scene.instance.epoch()
    if before is None or after is None or after.committed.epoch != before.committed.epoch:
        raise AssertionError("etcd's absence changed the membership")


@scenario(etcd=3)
async def kill_etcd_leader(scene: Scene) -> None:
    """SIGKILL of one of three etcd members during a recovery."""
    rank = scene.pick()[0]
    index = scene.rng.randrange(len(scene.instance.local_etcd.members))

    def both(hit: Rank) -> Moment:
        moment = scene.faults.kill_rank(hit)
        scene.faults.kill_etcd_member(index)
        return moment

    report, moment = await scene.lose("SIGKILL of rank and etcd member", rank, both)
    scene.faults.restart(f"etcd-{scene.instance.local_etcd.members[index].name}")
    await scene.back(report, moment)


@scenario()
async def drain(scene: Scene) -> None:
    """Drain under load, and rejoin: nobody waits."""
    rank = scene.pick()[0]
    moment = Moment.now()
    report = FaultReport("drain", rank)
    scene.reports.append(report)
    done = await scene.faults.operation(f"/v1/ranks/{rank}:drain", {"reason": "maintenance"}, within_s=120.0)
    if done["state"] != "done":
        raise AssertionError(f"drain of rank {rank}: {done}")
    scene.tell(f"rank {rank}: drained")
    await scene.quiet()
    scene.watch_gaps(report, moment)
    back = await scene.faults.operation(f"/v1/ranks/{rank}:rejoin", {"reason": "repaired"}, within_s=240.0)
    if back["state"] != "done":
        raise AssertionError(f"rejoin of rank {rank}: {back}")
    await scene.back(report, moment)


@scenario()
async def drain_refused(scene: Scene) -> None:
    """Drains that would leave experts without a slot are refused, and nothing changes."""
    before = await scene.instance.epoch()
    accepted = []
    for rank in sorted(scene.ranks):
        status, answer = await scene.admin("POST", f"/v1/ranks/{rank}:drain?dry_run=1", {"reason": "all of them"})
        if status not in (200, 409):
            raise AssertionError(f"dry run of a drain: HTTP {status}: {answer}")
    for rank in sorted(scene.ranks):
        status, answer = await scene.admin("POST", f"/v1/ranks/{rank}:drain", {"reason": "one after the other"})
        if status == 409:
            scene.tell(f"rank {rank}: drain refused: {answer.get('detail', answer)}")
            break
        accepted.append(rank)
        await scene.instance.wait_members(scene.ranks - set(accepted), within_s=120.0)
    else:
        raise AssertionError("every rank could be drained")
    for rank in accepted:
        await scene.faults.operation(f"/v1/ranks/{rank}:rejoin", {"reason": "as you were"}, within_s=240.0)
    await scene.back(None, None)
    if before is None:
        raise AssertionError("no epoch before")


@scenario()
async def cordon(scene: Scene) -> None:
    """A cordoned rank that dies stays out until it is let in again."""
    rank = scene.pick()[0]
    await scene.faults.operation(f"/v1/ranks/{rank}:cordon", {"reason": "suspicious"}, within_s=30.0)
    report, moment = await scene.lose("SIGKILL of a cordoned rank", rank, scene.faults.kill_rank)
    await scene.instance.wait(
        lambda _, there: rank in there and there[rank].ready, what=f"restart of rank {rank}", within_s=240.0
    )
    await scene.quiet(2.0)
    await _must_be_out(scene, rank, "is cordoned")
    await scene.faults.operation(f"/v1/ranks/{rank}:uncordon", {"reason": "innocent"}, within_s=30.0)
    await scene.back(report, moment)


@scenario(policy={"flap_limit": 2, "backoff_s": 0.1})
async def flapping(scene: Scene) -> None:
    """A rank that dies as often as the policy allows stays out until an operator lets it in."""
    rank = scene.pick()[0]
    await scene.kill_and_return("SIGKILL", rank, scene.faults.kill_rank)
    report, moment = await scene.lose("SIGKILL again", rank, scene.faults.kill_rank)
    await scene.instance.wait(
        lambda _, there: rank in there and there[rank].ready, what=f"restart of rank {rank}", within_s=240.0
    )
    await scene.quiet(3.0)
    await _must_be_out(scene, rank, "flaps")
    await scene.faults.operation(f"/v1/ranks/{rank}:rejoin", {"reason": "cable replaced"}, within_s=240.0)
    await scene.back(report, moment)


@scenario()
async def poison(scene: Scene) -> None:
    """A request that kills every rank it touches is given up after a limit, not carried around the cluster."""
    killed: list[Rank] = []

    def strike(answer: Answer) -> None:
        if answer.ranks and len(killed) <= answer.resumed:
            killed.append(answer.ranks[-1])
            scene.faults.kill_rank(killed[-1])
            scene.tell(f"rank {killed[-1]}: SIGKILL because it serves the request")

    ask = structs.replace(scene.workload.ask(1_000_000), max_new_tokens=600)
    [answer] = await Load(scene.load.target, [ask], 1, on_token=strike).run()
    if answer.outcome is not Outcome.ERROR or len(killed) > 2:
        raise AssertionError(f"the request killed ranks {killed} and ended as {answer.outcome} {answer.error}")
    scene.tell(f"given up after ranks {killed}: {answer.error}")
    await scene.back(None, None)


@scenario()
async def corrupt_backup(scene: Scene) -> None:
    """Every byte of the host-memory backup is wrong: checksums catch it, and the next source is used."""
    backup = scene.instance.folder / "backup.experts"
    with backup.open("r+b") as file:
        start, size = 65536, backup.stat().st_size
        file.seek(start)
        file.write(bytes(255 - byte for byte in backup.read_bytes()[start:size]))
    scene.tell("host-memory backup: overwritten")
    report = await scene.kill_and_return("SIGKILL with a corrupt backup", scene.pick()[0], scene.faults.kill_rank)
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
        report, moment = await scene.lose("SIGKILL without a checkpoint", scene.pick()[0], scene.faults.kill_rank)
        await scene.quiet(2.0)
        scene.watch_gaps(report, moment)
    finally:
        model.symlink_to(target)
    scene.tell("checkpoint: back")
    await scene.back(report, moment)


async def _must_be_out(scene: Scene, rank: Rank, why: str) -> None:
    record = await scene.instance.epoch()
    if record is None or any(member.rank == rank for member in record.committed.members):
        raise AssertionError(f"rank {rank} {why}, and was taken back")


async def _until_joining(scene: Scene, rank: Rank) -> None:
    """Wait until an epoch with the rank is being prepared."""
    await scene.instance.wait(
        lambda record, _: (
            record is not None
            and record.preparing is not None
            and any(member.rank == rank for member in record.preparing.members)
        ),
        what=f"preparation of an epoch with rank {rank}",
        within_s=240.0,
    )
