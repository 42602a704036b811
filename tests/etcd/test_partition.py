"""Real partitions of the connected member; see ``partitioned.py``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.etcd.conftest import BINARIES
from tests.etcd.partitioned import SCENARIOS

UNSHARE = ["unshare", "--net", "--mount"]


def obstacle():
    """Why partitions cannot be made here, empty if they can."""
    missing = [tool for tool in ("unshare", "ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: util-linux, iproute2, nftables)"
    probe = [*UNSHARE, "sh", "-c", "mount -t tmpfs tmpfs /run && ip netns add probe && nft add table ip probe"]
    tried = subprocess.run(probe, capture_output=True, text=True, timeout=10, check=False)
    return f"network namespaces need root: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.mark.skipif(obstacle() != "", reason=obstacle())
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_partitioned_member_is_left_and_nothing_is_lost(scenario):
    versions = list(BINARIES)
    binary = BINARIES[versions[list(SCENARIOS).index(scenario) // 2 % len(versions)]]
    command = [*UNSHARE, sys.executable, "-m", "tests.etcd.partitioned", binary, scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gap_s"] <= found["bound_s"]
    assert found["listings"] == 1
    assert found["events"] > 20, "too few writes to tell anything"
