"""Which member a client uses: guards against stale members and wrong clusters, on real servers."""

from __future__ import annotations

import asyncio
import re
import signal
import time

import aiohttp
import pytest

from controlplane.etcd import EtcdClient, LeaseNotFoundError, UnavailableError, Watch, WrongClusterError
from schemas.config import EtcdConfig
from tools.etcd.local import LocalEtcd, free_ports


async def test_a_member_behind_what_was_seen_is_left(cluster, prefix):
    async with EtcdClient(EtcdConfig(endpoints=cluster.endpoints, deadline_s=1.0)) as client:
        await client.put(f"{prefix}a", b"")
        endpoints = client.session.endpoints
        term, revision = endpoints.mark
        for mark in ((term + 1, revision), (term, revision + 1000)):
            endpoints.mark = mark  # as if another member had answered from a later term or revision
            before = endpoints.rotations
            with pytest.raises(UnavailableError, match="behind the cluster"):
                await client.get(f"{prefix}a")
            assert endpoints.rotations > before
            endpoints.mark = (term, revision)
        assert (await client.get(f"{prefix}a")).only is not None


async def test_a_watch_on_a_member_that_lags_is_moved(cluster, prefix):
    async with EtcdClient(EtcdConfig(endpoints=cluster.endpoints)) as client:
        watch = Watch(client, prefix)
        changes = watch.changes()
        await anext(changes)
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.1)
        endpoints = client.session.endpoints
        truth, endpoints.mark = endpoints.mark, (endpoints.mark[0], endpoints.mark[1] + 1000)
        async with asyncio.timeout(5):
            while not endpoints.rotations:
                await asyncio.sleep(0.02)
        endpoints.mark = truth
        written = await client.put(f"{prefix}a", b"")
        async with asyncio.timeout(5):
            assert (await waiting).revision == written
        await changes.aclose()


async def test_two_clusters_in_one_list_are_an_error_and_not_a_mixture(binary):
    with LocalEtcd(binary=binary) as one, LocalEtcd(binary=binary) as other:
        config = EtcdConfig(endpoints=one.endpoints + other.endpoints)
        async with EtcdClient(config) as client:
            await client.get("/a")
            client.session.endpoints.leave(client.session.endpoints.current, "test")
            with pytest.raises(WrongClusterError, match=r"correct the list"):
                await client.get("/a")


async def test_members_that_refuse_are_passed_by_at_once(cluster, prefix):
    dead = tuple(f"http://127.0.0.1:{port}" for port in free_ports(2))
    async with EtcdClient(EtcdConfig(endpoints=(*dead, *cluster.endpoints))) as client:
        client.session.endpoints._current = 0
        begun = time.monotonic()
        await client.put(f"{prefix}a", b"")
        assert time.monotonic() - begun < 1.0


async def test_no_member_at_all_is_said_with_the_reason_by_the_deadline():
    config = EtcdConfig(endpoints=tuple(f"http://127.0.0.1:{port}" for port in free_ports(2)), deadline_s=1.0)
    async with EtcdClient(config) as client:
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match=r"no etcd member is reachable; http://127.*refused"):
            await client.put("/a", b"")
        assert 0.5 < time.monotonic() - begun < 2.5


async def renewal_streams(endpoint):
    """How many streams for renewals the member has seen."""
    async with aiohttp.ClientSession() as session, session.get(f"{endpoint}/metrics") as answer:
        found = re.search(r'grpc_server_started_total{grpc_method="LeaseKeepAlive",[^}]*} (\d+)', await answer.text())
        return int(found.group(1))


async def test_a_lease_is_renewed_on_one_stream_and_on_another_one_when_that_is_gone(binary):
    with LocalEtcd(binary=binary) as etcd:
        async with EtcdClient(EtcdConfig(endpoints=etcd.endpoints)) as client:
            before = await renewal_streams(etcd.endpoints[0])
            leases = [(await client.grant(30)).lease for _ in range(3)]
            renewals = [client.keep_alive(lease, within_s=2.0) for _ in range(5) for lease in leases]
            assert await asyncio.gather(*renewals) == [30] * 15
            assert await renewal_streams(etcd.endpoints[0]) == before + 1
            etcd.restart(etcd.members[0])
            await client.get("/a")  # connected again
            assert await client.keep_alive(leases[0], within_s=2.0) == 30
            with pytest.raises(LeaseNotFoundError):
                await client.keep_alive(12345, within_s=2.0)
            assert await client.keep_alive(leases[1], within_s=2.0) == 30


async def test_a_hung_member_costs_a_renewal_its_time_and_is_left(binary):
    with LocalEtcd(members=3, binary=binary) as etcd:
        async with EtcdClient(EtcdConfig(endpoints=etcd.endpoints)) as client:
            lease = (await client.grant(30)).lease
            assert await client.keep_alive(lease, within_s=2.0) == 30
            endpoints = client.session.endpoints
            hung = next(member for member in etcd.members if member.url == endpoints.current.address)
            hung.signal(signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(UnavailableError, match="no answer to a renewal within"):
                await client.keep_alive(lease, within_s=0.5)
            assert 0.4 < time.monotonic() - begun < 1.0
            assert endpoints.current.address != hung.url
            async with asyncio.timeout(10):  # the hung one may have led
                while True:
                    try:
                        assert await client.keep_alive(lease, within_s=0.5) == 30
                        break
                    except UnavailableError:
                        await asyncio.sleep(0.05)
