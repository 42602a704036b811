"""``tools/bench etcd``: the session layer's times: a dead owner's keys, a hung and a killed member, a delivery."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from controlplane.etcd import EtcdClient, KeptLease, LeaseState, Watch
from controlplane.etcd.rpc import rpc
from schemas.config import EtcdConfig
from tools.etcd.local import LocalEtcd, Member, installed_binaries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from controlplane.etcd import Change

KEY = "/bench/key"
PACE_S = 0.005
_LONG_S = 30.0


async def own(endpoints: Sequence[str]) -> None:
    """Be an owner whose death is to be noticed."""
    config = EtcdConfig(endpoints=tuple(endpoints))
    begun = time.monotonic()
    lease = await KeptLease.take(config, ttl_s=3, progress_deadline_s=_LONG_S)
    took_ms = (time.monotonic() - begun) * 1000
    resident = psutil.Process(lease.keeper_pid).memory_info().rss
    async with EtcdClient(config) as etcd:
        await etcd.put(KEY, b"", lease=lease.lease)
        print(json.dumps([took_ms, resident / 2**20]), flush=True)
        while lease.state is not LeaseState.LOST:
            lease.progress()
            await asyncio.sleep(PACE_S)


async def owner_death(etcd: LocalEtcd) -> tuple[float, float, float]:
    """SIGKILL an owner: ms until a watcher sees its key deleted; ms the lease took; MiB of its keeper."""
    async with EtcdClient(EtcdConfig(endpoints=etcd.endpoints)) as client, _changes(client) as changes:
        command = [sys.executable, "-m", "tools.benchmarks.etcd", "--owner", ",".join(etcd.endpoints)]
        owner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            line = await owner.stdout.readline() if owner.stdout else b""
            took_ms, mib = json.loads(line)
            await anext(changes)
            begun = time.monotonic()
        finally:
            owner.send_signal(signal.SIGKILL)
        async with asyncio.timeout(_LONG_S):
            await anext(changes)
        seen_ms = (time.monotonic() - begun) * 1000
        await owner.wait()
        return seen_ms, took_ms, mib


@asynccontextmanager
async def _changes(client: EtcdClient) -> AsyncIterator[AsyncIterator[Change]]:
    """A watch of the key, past its listing."""
    async with aclosing(Watch(client, KEY).changes()) as changes:
        await anext(changes)
        yield changes


async def delivery(etcd: LocalEtcd, *, count: int) -> list[float]:
    """Milliseconds from the sending of a put to its delivery to another client's watch."""
    config = EtcdConfig(endpoints=etcd.endpoints)
    times: list[float] = []
    async with EtcdClient(config) as writer, EtcdClient(config) as reader, _changes(reader) as changes:
        for _ in range(count):
            begun = time.monotonic()
            await asyncio.gather(writer.put(KEY, bytes(200)), anext(changes))
            times.append((time.monotonic() - begun) * 1000)
            await asyncio.sleep(PACE_S)
    return times


async def member_loss(etcd: LocalEtcd, number: signal.Signals) -> float:
    """Milliseconds without a delivery when a watch's member stops answering (not etcd's leader)."""
    config = EtcdConfig(endpoints=etcd.endpoints)
    async with EtcdClient(config) as reader:
        hit = await _follower(etcd)
        _connect(reader, hit)
        others = tuple(member.url for member in etcd.members if member is not hit)
        async with EtcdClient(EtcdConfig(endpoints=others)) as writer, _changes(reader) as changes:
            writing = asyncio.create_task(_write(writer))
            gaps = asyncio.create_task(_longest_gap(changes, for_s=3.0))
            await asyncio.sleep(0.5)
            hit.signal(number)
            gap_s = await gaps
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
    hit.kill()
    hit.start()
    etcd.wait(hit)
    return gap_s * 1000


async def _follower(etcd: LocalEtcd) -> Member:
    """A member that does not lead."""
    for member in etcd.members:
        async with EtcdClient(EtcdConfig(endpoints=(member.url,))) as client:
            await client.get(KEY)
            status = await client.session.endpoints.current.maintenance.Status(rpc.StatusRequest(), timeout=1)
            if status.leader != status.header.member_id:
                return member
    raise RuntimeError("every member says that it leads")


def _connect(reader: EtcdClient, member: Member) -> None:
    """Make ``member`` the one that ``reader`` uses."""
    while (current := reader.session.endpoints.current).address != member.url:
        reader.session.endpoints.leave(current, "the benchmark wants another one")


async def _write(writer: EtcdClient) -> None:
    while True:
        await writer.put(KEY, b"")
        await asyncio.sleep(PACE_S)


async def _longest_gap(changes: AsyncIterator[Change], *, for_s: float) -> float:
    begun = last = time.monotonic()
    longest = 0.0
    while last - begun < for_s:
        await anext(changes)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and worst, rounded to 0.1."""
    return {"p50": round(statistics.median(values), 1), "max": round(max(values), 1), "n": len(values)}


async def measure(binary: str, rounds: int) -> dict[str, dict[str, float]]:
    """All figures of one server version, three members."""
    with LocalEtcd(members=3, binary=binary) as etcd:
        deaths = [await owner_death(etcd) for _ in range(rounds)]
        hung = [await member_loss(etcd, signal.SIGSTOP) for _ in range(min(rounds, 5))]
        killed = [await member_loss(etcd, signal.SIGKILL) for _ in range(min(rounds, 5))]
        return {
            "owner killed → key gone, ms": summary([seen for seen, _, _ in deaths]),
            "a kept lease from nothing, ms": summary([took for _, took, _ in deaths]),
            "keeper, MiB resident": summary([mib for _, _, mib in deaths]),
            "put → delivery, ms": summary(await delivery(etcd, count=20 * rounds)),
            "hung member → next delivery, ms": summary(hung),
            "killed member → next delivery, ms": summary(killed),
        }


def main(argv: list[str]) -> int:
    """Measure every installed version of etcd."""
    parser = argparse.ArgumentParser(prog="tools/bench etcd", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--rounds", type=int, default=10, help="owners to kill (default 10)")
    parser.add_argument("--owner", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.owner:
        asyncio.run(own(options.owner.split(",")))
        return 0
    result = {version: asyncio.run(measure(path, options.rounds)) for version, path in installed_binaries().items()}
    for version, figures in result.items():
        for name, values in figures.items():
            print(f"etcd {version}  {name:<36} p50 {values['p50']:>8}  max {values['max']:>8}  n {values['n']}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
