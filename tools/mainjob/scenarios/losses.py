"""Processes of ranks die, stop, or are made to die by a request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec import structs

from schemas.config import WorkerConfig
from tools.loadgen import Load, Outcome
from tools.mainjob.report import FaultReport
from tools.mainjob.scenarios.registry import scenario

if TYPE_CHECKING:
    from schemas.vocabulary import Rank
    from tools.loadgen import Answer
    from tools.mainjob.scene import Scene

LEASE_S = WorkerConfig().lease_ttl_s


@scenario()
async def kill_one(scene: Scene) -> None:
    """SIGKILL of one rank."""
    await scene.kill_and_return("SIGKILL", scene.pick()[0], scene.faults.kill_rank)


@scenario()
async def kill_two(scene: Scene) -> None:
    """SIGKILL of two ranks at once."""
    report, moment = await scene.lose_two("SIGKILL of two")
    await scene.quiet()
    scene.watch_gaps(report, moment)
    await scene.back(report, moment)


@scenario()
async def kill_during_recovery(scene: Scene) -> None:
    """SIGKILL of a second rank some milliseconds after the first, while the others recover."""
    first, second = scene.pick(count=2)
    before = await scene.instance.epoch()
    there = await scene.incarnations()
    moment = scene.faults.kill_rank(first)
    await asyncio.sleep(scene.rng.uniform(0.005, 0.08))
    scene.faults.kill_rank(second)
    scene.tell(f"ranks {first} and, during its recovery, {second}: SIGKILL")
    for rank in (first, second):
        await scene.until_excluded(rank, there[rank])
    report = FaultReport("SIGKILL during recovery", first, epochs=(before.committed.epoch if before else 0,))
    scene.reports.append(report)
    await scene.quiet()
    scene.watch_gaps(report, moment)
    await scene.back(report, moment)


@scenario()
async def kill_during_rejoin(scene: Scene) -> None:
    """SIGKILL of another rank while the first one is being taken back."""
    first, second = scene.pick(count=2)
    report, moment = await scene.lose("SIGKILL", first, scene.faults.kill_rank)
    await scene.until_joining(first)
    await asyncio.sleep(scene.rng.uniform(0.0, 0.05))
    there = await scene.incarnations()
    scene.faults.kill_rank(second)
    scene.tell(f"rank {second}: SIGKILL while rank {first} rejoins")
    await scene.until_excluded(second, there[second])
    await scene.back(report, moment)


@scenario()
async def kill_a_joining_rank(scene: Scene) -> None:
    """SIGKILL of a rank while it is being taken back itself."""
    rank = scene.pick()[0]
    report, moment = await scene.lose("SIGKILL", rank, scene.faults.kill_rank)
    joining = await scene.until_joining(rank)
    await asyncio.sleep(scene.rng.uniform(0.0, 0.05))
    scene.faults.kill_rank(rank)
    scene.tell(f"rank {rank}: SIGKILL while it rejoins")
    await scene.until_replaced(rank, joining)
    await scene.back(report, moment)


@scenario(longest_wait_s=4.0)
async def zombie(scene: Scene) -> None:
    """SIGSTOP of a rank past its deadline, then SIGCONT: what it still does must reach nobody."""
    rank = scene.pick()[0]
    pid = scene.instance.scheduler(rank).pid
    report, moment = await scene.lose("SIGSTOP", rank, scene.faults.stop_rank)
    await scene.quiet()
    scene.watch_gaps(report, moment, seconds=5.0)
    scene.faults.wake(pid)
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
async def kill_keeper(scene: Scene) -> None:
    """SIGKILL of the process that keeps an agent's lease: another one goes on with it, and the rank serves on."""
    rank = scene.pick()[0]
    before = await scene.instance.epoch()
    moment = scene.faults.kill_keeper(rank)
    scene.tell(f"rank {rank}: SIGKILL of its lease's keeper")
    report = FaultReport("SIGKILL of the lease keeper", rank, epochs=(before.committed.epoch if before else 0,))
    scene.reports.append(report)
    await scene.quiet(LEASE_S * 2)
    scene.watch_gaps(report, moment, seconds=LEASE_S * 2)
    after = await scene.instance.epoch()
    if before is None or after is None or after.committed.epoch != before.committed.epoch:
        raise AssertionError("the end of a lease keeper changed the membership")


@scenario()
async def kill_http(scene: Scene) -> None:
    """SIGKILL of the engine's HTTP process only."""
    await scene.kill_and_return("SIGKILL of HTTP", scene.pick()[0], scene.faults.kill_http)


@scenario()
async def poison(scene: Scene) -> None:
    """A request that kills every rank it touches is given up after a limit, not carried around the cluster."""
    killed: list[Rank] = []

    def strike(answer: Answer) -> None:
        if answer.ranks and len(killed) <= answer.resumed:
            killed.append(answer.ranks[-1])
            scene.faults.kill_rank(killed[-1])
            scene.tell(f"rank {killed[-1]}: SIGKILL because it serves the request")

    ask = structs.replace(scene.workload.ask(1_000_000 + scene.rng.randrange(1_000_000)), max_new_tokens=600)
    [answer] = await Load(scene.load.target, [ask], 1, on_token=strike).run()
    if answer.outcome is not Outcome.ERROR or len(killed) > 2:
        raise AssertionError(f"the request killed ranks {killed} and ended as {answer.outcome} {answer.error}")
    scene.tell(f"given up after ranks {killed}: {answer.error}")
    await scene.back(None, None)
