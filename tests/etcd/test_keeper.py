"""Leases kept by a keeper process, with real processes that die, stall and stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from controlplane.etcd import EtcdClient, EventKind, KeptLease, LeaseState, UnavailableError, Watch
from schemas.config import EtcdConfig
from tests.etcd.conftest import SHAPES, name_of
from tools.etcd.local import LocalEtcd, free_ports

TTL_S = 2
AT_ONCE_S = 0.5
"""Far below the TTL, and enough for a busy machine; the usual figure is some milliseconds."""


def running(pid):
    """Whether the process still runs; an orphan's zombie belongs to init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def known(pid):
    """Whether the process is in the table at all, zombies included."""
    return Path(f"/proc/{pid}").exists()


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def descriptors():
    """What each open descriptor of ours leads to, counted; garbage of earlier tests closes its own first."""
    gc.collect()
    found = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[link.readlink()] += 1
    return found


async def ends(pid, within_s=5.0):
    async with asyncio.timeout(within_s):
        while running(pid):
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def owner(endpoints, key, mode="run", progress_deadline_s=30.0):
    """An owner process that holds ``key``: yields (process, its keeper's pid)."""
    arguments = (",".join(endpoints), key, str(TTL_S), str(progress_deadline_s), mode)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.etcd.owner", *arguments, stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(20):
            word, keeper = (await process.stdout.readline()).split()
        assert word == b"ready"
        yield process, int(keeper)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def watched(etcd, key):
    """Yield a coroutine function that waits for the key's deletion and returns how long it took."""
    async with aclosing(Watch(etcd, key).changes()) as changes:
        assert (await anext(changes)).events, "the key is there"

        async def gone(within_s):
            begun = time.monotonic()
            async with asyncio.timeout(within_s):
                change = await anext(changes)
            assert change.events[0].kind is EventKind.DELETE
            return time.monotonic() - begun

        yield gone


@pytest.fixture(params=[SHAPES[0], SHAPES[-1]], ids=name_of)
def config(request, shared_clusters):
    """Each version once, one node and three."""
    cluster = shared_clusters(*request.param)
    return EtcdConfig(endpoints=cluster.endpoints)


@pytest.fixture
async def client(config):
    async with EtcdClient(config) as client:
        yield client


async def take(config, progress_deadline_s=30.0):
    return await KeptLease.take(config, ttl_s=TTL_S, progress_deadline_s=progress_deadline_s)


async def test_a_killed_owner_loses_its_keys_at_once(client, config, prefix):
    async with owner(config.endpoints, f"{prefix}k") as (process, keeper), watched(client, f"{prefix}k") as gone:
        process.send_signal(signal.SIGKILL)
        await gone(AT_ONCE_S)
        await ends(keeper)


async def test_an_owner_that_exits_without_a_word_loses_its_keys_at_once(client, config, prefix):
    async with owner(config.endpoints, f"{prefix}k", mode="exit") as (process, keeper):
        await process.wait()
        await ends(keeper)
        assert not (await client.get(f"{prefix}k")).items


async def test_a_stalled_interpreter_keeps_its_lease(client, config, prefix):
    async with owner(config.endpoints, f"{prefix}k", mode="stall") as (process, _):
        async with asyncio.timeout(20):
            assert (await process.stdout.readline()).strip() == b"held"
        assert (await client.get(f"{prefix}k")).only is not None


async def test_a_wedged_owner_loses_its_lease_on_purpose_and_knows_when_it_wakes(binary, prefix):
    with LocalEtcd(binary=binary) as etcd:
        config = EtcdConfig(endpoints=etcd.endpoints)
        async with EtcdClient(config) as client, owner(etcd.endpoints, f"{prefix}k", progress_deadline_s=3) as it:
            process, keeper = it
            async with watched(client, f"{prefix}k") as gone:
                process.send_signal(signal.SIGSTOP)
                assert await gone(5) > 2.5, "not before its deadline, though longer than the TTL"
                await ends(keeper)
                process.send_signal(signal.SIGCONT)
                async with asyncio.timeout(AT_ONCE_S):
                    assert (await process.stdout.readline()).strip() == b"lost the owner made no progress"


async def test_the_keeper_is_not_ended_by_the_signals_that_end_its_owner(client, config, prefix):
    async with owner(config.endpoints, f"{prefix}k") as (_, keeper):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(keeper, number)
        await asyncio.sleep(TTL_S * 1.5)
        assert running(keeper)
        assert (await client.get(f"{prefix}k")).only is not None


async def test_a_keeper_that_dies_is_replaced_and_the_lease_goes_on(client, config, prefix):
    lease = await take(config)
    try:
        await client.put(f"{prefix}k", b"", lease=lease.lease)
        first, name = lease.keeper_pid, lease.lease
        os.kill(first, signal.SIGKILL)
        await asyncio.sleep(TTL_S * 2)
        assert lease.state is LeaseState.HELD
        assert (lease.lease, lease.keeper_pid != first) == (name, True)
        assert (await client.get(f"{prefix}k")).only is not None
        assert not known(first), "reaped"
    finally:
        await lease.release()


async def test_release_deletes_the_keys_and_leaves_nothing_behind(client, config, prefix):
    await client.put(f"{prefix}other", b"")  # the client's own connection stands
    before = descriptors()
    lease = await take(config)
    keeper = lease.keeper_pid
    await client.put(f"{prefix}k", b"", lease=lease.lease)
    await lease.release()
    assert (await client.get(f"{prefix}k")).only is None
    assert lease.state is LeaseState.LOST
    assert await lease.wait_lost() == "the owner released it"
    assert not known(keeper), "no zombie"
    assert not descriptors() - before, "what garbage collection closes meanwhile is another test's"
    lease.progress()
    await lease.release()


async def test_a_revoked_lease_is_known_to_be_lost(client, config):
    lease = await take(config)
    await client.revoke(lease.lease)
    async with asyncio.timeout(TTL_S):
        assert await lease.wait_lost() == "etcd says that it expired or was revoked"
    assert lease.state is LeaseState.LOST
    keeper = lease.keeper_pid
    await lease.release()
    assert not known(keeper)


async def test_a_silent_etcd_makes_the_lease_uncertain_and_then_lost_before_the_keys_can_go(binary):
    with LocalEtcd(binary=binary) as etcd:
        lease = await take(EtcdConfig(endpoints=etcd.endpoints))
        keeper = lease.keeper_pid
        etcd.members[0].signal(signal.SIGSTOP)
        begun, states = time.monotonic(), [lease.state]
        while lease.state is not LeaseState.LOST and time.monotonic() - begun < 10:
            if lease.state is not states[-1]:
                states.append(lease.state)
            await asyncio.sleep(0.01)
        assert time.monotonic() - begun < TTL_S, "before etcd could give the keys away"
        assert states == [LeaseState.HELD, LeaseState.UNCERTAIN]
        assert "no renewal" in await lease.wait_lost()
        await ends(keeper)
        await lease.release()


async def test_without_etcd_there_is_no_lease_and_no_keeper_left():
    config = EtcdConfig(endpoints=(f"http://127.0.0.1:{free_ports(1)[0]}",), deadline_s=0.5)
    before = children()
    with pytest.raises(UnavailableError, match="no etcd member is reachable"):
        await take(config)
    assert children() == before


async def test_the_keeper_is_light(config):
    lease = await take(config)
    resident = psutil.Process(lease.keeper_pid).memory_info().rss
    await lease.release()
    assert resident < 64 << 20, "the engine beside it needs the machine"
