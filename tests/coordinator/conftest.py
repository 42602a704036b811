"""One real etcd for the coordinator's tests."""

import pytest

from tools.etcd.local import LocalEtcd


@pytest.fixture(scope="session")
def shared_etcd():
    with LocalEtcd(members=1) as local:
        yield local
