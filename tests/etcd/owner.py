"""A lease's owner as a process of its own: ``python -m tests.etcd.owner ENDPOINTS KEY TTL PROGRESS_DEADLINE MODE``.

Prints one line per thing that a test waits for.
"""

from __future__ import annotations

import asyncio
import sys
import time

from controlplane.etcd import EtcdClient, KeptLease, LeaseState
from schemas.config import EtcdConfig


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def own(endpoints, key, ttl_s, progress_deadline_s, mode):
    config = EtcdConfig(endpoints=tuple(endpoints.split(",")))
    lease = await KeptLease.take(config, ttl_s=int(ttl_s), progress_deadline_s=float(progress_deadline_s))
    async with EtcdClient(config) as etcd:
        await etcd.put(key, b"", lease=lease.lease)
        say("ready", lease.keeper_pid)
        if mode == "stall":
            time.sleep(2.5 * lease.ttl_s)  # noqa: ASYNC251  the interpreter stalls on purpose
            say(lease.state.value)
        if mode == "exit":
            return
        while lease.state is not LeaseState.LOST:
            lease.progress()
            await asyncio.sleep(0.05)
        say("lost", await lease.wait_lost())
        await lease.release()


if __name__ == "__main__":
    asyncio.run(own(*sys.argv[1:]))
