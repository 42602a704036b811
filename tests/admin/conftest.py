"""One real etcd for the whole run; each test has an instance of its own in it."""

from __future__ import annotations

import uuid

import pytest

from controlplane.etcd import EtcdClient
from schemas.config import EtcdConfig
from schemas.keys import Keys
from tests.admin.instance import Instance
from tools.etcd.local import LocalEtcd


@pytest.fixture(scope="session")
def one_etcd():
    with LocalEtcd(members=1) as local:
        yield local


@pytest.fixture
async def instance(one_etcd):
    async with EtcdClient(EtcdConfig(endpoints=one_etcd.endpoints)) as etcd:
        made = Instance(etcd, Keys(uuid.uuid4().hex[:12]))
        await made.write()
        yield made


@pytest.fixture
async def api(instance, tmp_path):
    """A client with an operator's token."""
    async with instance.client(tmp_path) as client:
        yield client
