"""Is the instance in its normal state? Between two scenarios it has to be: else the second is judged for the first."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from schemas.codec import decode
from schemas.operations import Operation
from schemas.records import Status
from schemas.vocabulary import RankState
from tools.mainjob.instance import InstanceError

if TYPE_CHECKING:
    from tools.mainjob.instance import Instance

STEADY_S = 1.0
"""An epoch that has stood for so long with nothing to do is at rest: spare slots are filled after a return."""
_POLL_S = 0.1


async def wait_normal(instance: Instance, *, within_s: float) -> None:
    """Wait until every rank is active under one epoch that nothing is about to change, and every gateway serves.

    Raises:
        InstanceError: it is not in time; names what is missing.
        ProcessEndedError: a program that should run has ended.
    """
    until = time.monotonic() + within_s
    epoch, since = 0, time.monotonic()
    while True:
        instance.check()
        record, missing = await instance.epoch(), await obstacles(instance)
        now = time.monotonic()
        if missing or record is None or record.committed.epoch != epoch:
            epoch, since = record.committed.epoch if record else 0, now
        elif now - since >= STEADY_S:
            break
        if now > until:
            raise InstanceError(f"not back to normal within {within_s:.0f} s: {'; '.join(missing) or 'still moving'}")
        await asyncio.sleep(_POLL_S)
    try:
        await instance.gateways_ready(within_s=max(1.0, until - time.monotonic()))
    except TimeoutError as error:
        raise InstanceError("a gateway takes no requests, with every rank active") from error


async def obstacles(instance: Instance) -> list[str]:
    """What is not as it should be, in words; empty in the normal state."""
    record, registrations = await instance.epoch(), await instance.registrations()
    if record is None:
        return ["no epoch"]
    found = [f"{program.name} does not run" for program in instance.household.programs.values() if not program.running]
    if record.preparing is not None:
        found.append(f"epoch {record.preparing.epoch} is being prepared")
    members = {member.rank: member.incarnation for member in record.committed.members}
    for rank in range(instance.plan.ranks):
        there = registrations.get(rank)
        if rank not in members:
            found.append(f"rank {rank} is no member of epoch {record.committed.epoch}")
        elif there is None or not there.ready or there.incarnation != members[rank]:
            found.append(f"rank {rank} is registered as {there}")
        elif there.holds != record.committed.placement:
            found.append(f"rank {rank} has not crossed into epoch {record.committed.epoch}")
    return [*found, *await _decided(instance)]


async def _decided(instance: Instance) -> list[str]:
    """What the leader has written down about ranks and operations."""
    status = (await instance.etcd.get(instance.keys.status)).only
    if status is None:
        return ["no status"]
    decided = decode(status.value, Status, key=status.key)
    found = [
        f"rank {view.rank} is {view.state}: {view.reason}"
        for view in decided.ranks
        if view.state is not RankState.ACTIVE or view.cordoned
    ]
    operations = [
        decode(item.value, Operation, key=item.key) for item in await instance.etcd.get(instance.keys.operations)
    ]
    found += [f"operation {one.id} is {one.state}" for one in operations if not one.state.final]
    return [*found, *([f"recovery is paused: {decided.paused}"] if decided.paused else [])]
