"""Three members in network namespaces of their own, cut apart by nftables: one scenario per process.

``unshare --net --mount python -m tests.etcd.partitioned BINARY SCENARIO``; prints what it measured as JSON. Everything
lives in the private namespaces and goes with them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.etcd.riding import leader_index, pinned, ride
from tools.etcd.local import LocalEtcd

MEMBERS = 3


def run(command):
    subprocess.run(command.split(), check=True, timeout=10)


def build():
    """A router (here) and one namespace per member behind it."""
    run("mount -t tmpfs tmpfs /run")
    run("ip link set lo up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for index in range(MEMBERS):
        run(f"ip netns add m{index}")
        run(f"ip link add v{index} type veth peer name eth0 netns m{index}")
        run(f"ip addr add 10.77.{index}.254/24 dev v{index}")
        run(f"ip link set v{index} up")
        run(f"ip -n m{index} addr add {host(index)}/24 dev eth0")
        run(f"ip -n m{index} link set eth0 up")
        run(f"ip -n m{index} link set lo up")
        run(f"ip -n m{index} route add default via 10.77.{index}.254")
    run("nft add table ip cut")
    for hook in ("forward", "input", "output"):
        run(f"nft add chain ip cut {hook} {{ type filter hook {hook} priority 0 ; }}")


def host(index):
    return f"10.77.{index}.1"


def cut(hook, *matches):
    """Drop silently, as a broken switch does."""
    for match in matches:
        run(f"nft add rule ip cut {hook} {match} drop")


def mend():
    for hook in ("forward", "input", "output"):
        run(f"nft flush chain ip cut {hook}")


def cut_peers(hit):
    """The member is alive and answers its clients, and has lost the cluster."""
    cut("forward", f"ip saddr {host(hit)}", f"ip daddr {host(hit)}")


def cut_peers_one_way(hit):
    """The member hears the cluster and is not heard."""
    cut("forward", f"ip saddr {host(hit)}")


def cut_client(hit):
    """Only the way between client and member is gone."""
    cut("input", f"ip saddr {host(hit)}")
    cut("output", f"ip daddr {host(hit)}")


def cut_client_one_way(hit):
    """Requests arrive, replies do not."""
    cut("input", f"ip saddr {host(hit)}")


NOTICED_S = {cut_client: 1.5, cut_peers: 4.0, cut_client_one_way: 1.5, cut_peers_one_way: 4.0}
"""A silent link is left like a hung member; a member without a leader says so after etcd's own three elections."""
SCENARIOS = {fault.__name__: fault for fault in NOTICED_S}


async def measure(etcd, fault):
    leader = await leader_index(etcd.endpoints)
    hit, other = [index for index in range(MEMBERS) if index != leader]
    reader, writer = await pinned(etcd.endpoints, hit), await pinned(etcd.endpoints, other)
    async with ride(writer, reader, "/ride/") as it:
        fault(hit)
        await asyncio.sleep(NOTICED_S[fault] + 0.5)
        mend()
    await reader.close()
    await writer.close()
    return {
        "gap_s": it.longest_gap_s,
        "bound_s": NOTICED_S[fault],
        "events": len(it.delivered),
        "listings": it.relisted,
    }


def main(binary, scenario):
    build()
    wrap = [["ip", "netns", "exec", f"m{index}"] for index in range(MEMBERS)]
    with LocalEtcd(members=MEMBERS, binary=binary, hosts=[host(index) for index in range(MEMBERS)], wrap=wrap) as etcd:
        sys.stdout.write(json.dumps(asyncio.run(measure(etcd, SCENARIOS[scenario]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
