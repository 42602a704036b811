"""Real clusters, one per (version, size) for the whole run: each test works under a prefix of its own."""

from __future__ import annotations

import uuid
from contextlib import ExitStack

import pytest

from controlplane.etcd import EtcdClient
from schemas.config import EtcdConfig
from tools.etcd.local import LocalEtcd, installed_binaries
from tools.simulation.etcd_model import EtcdModel

BINARIES = installed_binaries()
SHAPES = [(version, members) for version in BINARIES for members in (1, 3)]


def name_of(shape):
    return f"{shape[0]}x{shape[1]}"


@pytest.fixture(scope="session")
def shared_clusters():
    with ExitStack() as stack:
        running: dict[tuple[str, int], LocalEtcd] = {}

        def cluster(version, members):
            if (version, members) not in running:
                local = LocalEtcd(members=members, binary=BINARIES[version])
                running[version, members] = stack.enter_context(local)
            return running[version, members]

        yield cluster


@pytest.fixture(params=SHAPES, ids=name_of)
def cluster(request, shared_clusters):
    """A healthy cluster that the test must leave healthy."""
    return shared_clusters(*request.param)


@pytest.fixture(params=list(BINARIES))
def binary(request):
    """For tests that break their cluster: they start one of their own."""
    return BINARIES[request.param]


@pytest.fixture
def prefix():
    return f"/test/{uuid.uuid4().hex[:12]}/"


@pytest.fixture(params=[*SHAPES, None], ids=lambda shape: name_of(shape) if shape else "model")
async def etcd(request, shared_clusters):
    """Every kind of ``Etcd``: real ones and the in-memory model."""
    if request.param is None:
        async with EtcdModel() as model:
            yield model.client("test")
    else:
        cluster = shared_clusters(*request.param)
        async with EtcdClient(EtcdConfig(endpoints=cluster.endpoints)) as client:
            yield client
