"""What happens to a simulated instance: drawn from the seed, then everything is healed and must become whole again."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from schemas.operations import OperationKind
from tools.simulation.lockstep import traffic
from tools.simulation.world import REPLICAS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from schemas.vocabulary import Rank
    from tools.simulation.world import World

CHAOS_S = 10.0
HAND_OVER_S = 5.0
SETTLE_S = 60.0
"""Longest it may take to become whole after the last fault: every deadline of the policy once, and back-offs."""

GREY_EVERY = 5
"""Of so many seeds one ends with a grey failure: it takes longer than all of the rest."""
BUSY_SHARE = 0.3
GREY_S = 80.0
"""Three rows, each 5 s, tell who is slow; less work or, after ``slow_drain_s``, none must follow."""


async def kill_engine(world: World) -> None:
    """SIGKILL of one or two engines at once."""
    for rank in world.random.sample(sorted(world.fabric.engines), world.random.choice([1, 1, 2])):
        world.note(f"FAULT engine of rank {rank} is killed")
        world.fabric.engines[rank].kill()


async def kill_agent(world: World) -> None:
    """An agent dies with its engine, and is started again after a while."""
    rank = world.random.choice(sorted(world.agents))
    await world.kill_agent(rank, keeper=world.random.random() < 0.7)
    await asyncio.sleep(world.random.uniform(0.1, 2.0))
    world.start_agent(rank)


async def stop_engine(world: World) -> None:
    """SIGSTOP past the deadline, then SIGCONT: a zombie."""
    rank = world.random.choice(sorted(world.fabric.engines))
    world.note(f"FAULT engine of rank {rank} is stopped")
    engine = world.fabric.engines[rank]
    engine.stop()
    await asyncio.sleep(world.random.uniform(0.2, 5.0))
    world.note(f"engine of rank {rank} wakes")
    engine.wake()


async def cut_agent(world: World) -> None:
    """An agent loses etcd for a while; its engine does not."""
    await _cut(world, f"rank{world.random.choice(sorted(world.agents))}", world.random.uniform(0.3, 5.0))


async def cut_replica(world: World) -> None:
    """A replica loses etcd for a while."""
    await _cut(world, world.random.choice(REPLICAS), world.random.uniform(0.3, 4.0))


async def _cut(world: World, name: str, seconds: float) -> None:
    world.note(f"FAULT {name} is cut off from etcd for {seconds:.1f} s")
    world.model.partition(name)
    await asyncio.sleep(seconds)
    world.model.heal(name)


async def stall_replica(world: World) -> None:
    """A replica, mostly the one that leads, stands still just before it sends, longer than its lease lives."""
    leading = [name for name in REPLICAS if world.coordinators[name].view.leading]
    name = world.random.choice(leading * 4 + list(REPLICAS))
    seconds = world.random.uniform(0.5, 5.0)
    world.note(f"FAULT the next write of {name} is held back for {seconds:.1f} s")
    world.clients[name].stall_s = seconds


async def kill_replica(world: World) -> None:
    """A replica dies and is started again."""
    name = world.random.choice(REPLICAS)
    world.note(f"FAULT replica {name} is killed")
    await world.end_task(name)
    await asyncio.sleep(world.random.uniform(0.1, 2.0))
    world.start_coordinator(name)


async def hand_over(world: World) -> None:
    """The leader is asked to hand over, and its process is replaced."""
    for name, coordinator in world.coordinators.items():
        if coordinator.view.leading and name in world.tasks:
            world.note(f"{name} hands over")
            with contextlib.suppress(TimeoutError):  # another fault may kill it meanwhile
                async with asyncio.timeout(HAND_OVER_S):
                    await coordinator.hand_over()
            await world.end_task(name)
            world.start_coordinator(name)
            return


async def lose_quorum(world: World) -> None:
    """Etcd has no leader for a while."""
    world.note("FAULT etcd has no quorum")
    world.model.lose_quorum()
    await asyncio.sleep(world.random.uniform(0.2, 3.0))
    world.model.restore_quorum()
    world.note("etcd has a quorum again")


async def lose_replies(world: World) -> None:
    """Some replies are lost after their requests were applied."""
    name = world.random.choice([*REPLICAS, *(f"rank{rank}" for rank in world.agents)])
    world.note(f"FAULT replies to {name} are lost")
    world.model.lose_reply(name, count=world.random.choice([1, 2]))


async def lose_disk(world: World) -> None:
    """A rank's checkpoint is away for a while."""
    engine = world.fabric.engines[world.random.choice(sorted(world.fabric.engines))]
    world.note(f"FAULT rank {engine.rank} cannot read its checkpoint")
    engine.disk = False
    await asyncio.sleep(world.random.uniform(0.5, 4.0))
    engine.disk = True


async def leave(world: World) -> None:
    """SIGTERM of an agent: it asks to be drained, goes, and is started again."""
    rank = world.random.choice(sorted(world.agents))
    world.note(f"rank {rank} is asked to leave")
    world.agents[rank].leave("maintenance", deadline_s=4.0)
    name = f"rank{rank}"
    task = world.tasks.get(name)
    if task is None:
        return
    await asyncio.wait([task], timeout=6.0)
    if world.tasks.get(name) is task:
        await world.end_task(name)
        world.start_agent(rank)


async def operate(world: World) -> None:
    """An operator does something, and sometimes thinks better of it."""
    ranks = sorted(world.agents)
    kind = world.random.choice(list(OperationKind))
    rank = world.random.choice(ranks)
    parameters: dict[str, object] = {}
    named: tuple[int, ...] = (rank,)
    match kind:
        case OperationKind.SCALE:
            parameters["target"] = world.random.randint(0, len(ranks))
        case OperationKind.REPLACE:
            parameters["by"] = (world.random.choice(ranks),)
        case OperationKind.PAUSE:
            parameters["losses"] = world.random.random() < 0.5
        case OperationKind.REBALANCE | OperationKind.RESUME:
            named = ()
        case _:
            pass
    name = await world.ask(kind, *named, parameters=parameters)
    if world.random.random() < 0.2:
        await asyncio.sleep(world.random.uniform(0.01, 1.0))
        await world.cancel(name)


FAULTS: dict[Callable[[World], Awaitable[None]], int] = {
    kill_engine: 6,
    kill_agent: 3,
    stop_engine: 3,
    cut_agent: 2,
    cut_replica: 2,
    stall_replica: 2,
    kill_replica: 2,
    hand_over: 1,
    lose_quorum: 1,
    lose_replies: 2,
    lose_disk: 1,
    leave: 1,
    operate: 5,
}
"""Each fault and how often it is drawn."""


async def tell(world: World) -> None:
    """The whole story: start, chaos, healing, and the verdict in ``world.checker.problems``."""
    async with world.model:
        for name in REPLICAS[: world.random.choice([2, 3])]:
            world.start_coordinator(name)
        for name in REPLICAS:
            if name not in world.coordinators:
                world.start_coordinator(name)
        for rank in range(world.ranks):
            world.start_agent(rank)
        world.run_task("fabric", world.fabric.run())
        under_way = await _chaos(world)
        if not world.checker.problems:
            await asyncio.gather(*under_way)
            await _heal(world)
            await _becomes_whole(world)
            if not world.checker.problems and world.seed % GREY_EVERY == 0:
                await _grey(world)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await _end(world)


async def _chaos(world: World) -> list[asyncio.Task[None]]:
    loop = asyncio.get_running_loop()
    under_way: list[asyncio.Task[None]] = []
    await asyncio.sleep(world.random.uniform(0.0, 3.0))
    names, weights = list(FAULTS), list(FAULTS.values())
    while loop.time() < CHAOS_S and not _over(world):
        fault = world.random.choices(names, weights)[0]
        under_way.append(asyncio.ensure_future(fault(world)))
        await asyncio.sleep(world.random.choice([0.002, 0.05, 0.3, 1.0, 2.0]) * world.random.uniform(0.5, 1.5))
    return under_way


def _over(world: World) -> bool:
    """A violation, or a process that ended by an error of its own."""
    for name, task in world.tasks.items():
        if task.done() and not task.cancelled() and task.exception() is not None:
            world.checker.fail(f"{name} crashed: {task.exception()!r}")
    return bool(world.checker.problems)


async def _heal(world: World) -> None:
    """Everything works again and every hold is lifted: from now on the instance must recover by itself."""
    world.note("--- everything is healed")
    for engine in world.fabric.engines.values():
        engine.disk = True
        if engine.alive and not engine.checkpoint:  # it came up without one: whoever mends a disk starts it again
            engine.kill()
    for rank in sorted(world.agents):
        name = f"rank{rank}"
        if name not in world.tasks or world.tasks[name].done():
            world.start_agent(rank)
    for name in REPLICAS:
        if name not in world.tasks or world.tasks[name].done():
            world.start_coordinator(name)
    await world.ask(OperationKind.RESUME)
    await world.ask(OperationKind.SCALE, parameters={"target": 0})
    await world.ask(OperationKind.REJOIN, *sorted(world.agents), deadline_s=SETTLE_S)


async def _becomes_whole(world: World) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_S
    while loop.time() < until and not _over(world):
        await asyncio.sleep(0.25)
        if not world.unsettled():
            before = world.fabric.sampled
            await asyncio.sleep(0.5)
            if not world.unsettled() and world.fabric.sampled > before:
                return
    if not world.checker.problems:
        world.checker.fail(f"invariant 10: not whole {SETTLE_S:g} s after the last fault: {world.unsettled()}")


async def _grey(world: World) -> None:
    """One rank is slow, or busy, and nothing else happens: the slow one is relieved, or leaves, and nobody else is."""
    rank = world.random.choice(sorted(world.agents))
    engine = world.fabric.engines[rank]
    if world.random.random() < BUSY_SHARE:
        engine.requests *= 4
        world.note(f"rank {rank} is busy")
        await asyncio.sleep(GREY_S)
        _over(world)
        return
    world.checker.slow.add(rank)
    engine.speed = world.random.choice([0.3, 0.5])
    world.note(f"FAULT rank {rank} is slow: {engine.speed:.0%}, {engine.attention:.0%} of its work is its own")
    before = _work_of(world, rank)
    loop = asyncio.get_running_loop()
    until = loop.time() + GREY_S
    while loop.time() < until and not _over(world):
        await asyncio.sleep(1.0)
        record = world.checker.record
        gone = record is not None and rank not in {member.rank for member in record.committed.members}
        if gone or _work_of(world, rank) < before:
            world.note(f"rank {rank} {'has left' if gone else 'has less to do'}")
            return
    if not world.checker.problems:
        world.checker.fail(f"rank {rank} has been slow for {GREY_S:g} s and has as much to do as before")


def _work_of(world: World, rank: Rank) -> float:
    """Experts' work that the committed table gives the rank."""
    placement = world.checker.live()
    return traffic(placement)[rank] if placement is not None and rank < placement.max_ranks else 0.0


async def _end(world: World) -> None:
    for task in world.tasks.values():
        task.cancel()
    await asyncio.gather(*world.tasks.values(), return_exceptions=True)
