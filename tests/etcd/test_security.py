"""TLS, mutual TLS, users and tokens against real servers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from aetcd import rpc as messages

from controlplane.etcd import (
    AuthenticationError,
    EtcdClient,
    KeptLease,
    PermissionDeniedError,
    UnavailableError,
    Watch,
)
from schemas.config import EtcdConfig
from tests.etcd.security import as_root, enable_users, make_authority, plain_channel, server_flags
from tools.etcd.local import LocalEtcd

PREFIX = "/eep/"
USER = "eep"
PASSWORD = "correct horse"  # noqa: S105
ROTATED = "battery staple"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("pki") / "ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("pki") / "other", name="somebody else")


async def round_trip(*, within_s=20.0, **settings):
    """A put and a get with these settings."""
    async with EtcdClient(EtcdConfig(deadline_s=within_s, **settings)) as etcd:
        await etcd.put(f"{PREFIX}a", b"1")
        return (await etcd.get(f"{PREFIX}a")).only.value


async def test_tls_proves_the_server(binary, authority, stranger):
    flags = server_flags(authority, client_certificates=False)
    with LocalEtcd(binary=binary, tls=True, extra=flags) as etcd:
        assert await round_trip(endpoints=etcd.endpoints, ca_file=authority.certificate) == b"1"
        with pytest.raises(UnavailableError, match="certificate"):
            await round_trip(within_s=2.0, endpoints=etcd.endpoints, ca_file=stranger.certificate)
        plain = tuple(url.replace("https", "http") for url in etcd.endpoints)
        with pytest.raises(UnavailableError):
            await round_trip(within_s=2.0, endpoints=plain)


async def test_mutual_tls_proves_the_client_and_its_keeper(binary, authority, stranger):
    flags = server_flags(authority, client_certificates=True)
    with LocalEtcd(binary=binary, tls=True, extra=flags) as etcd:
        certificate, key = authority.issue("client")
        known = {"ca_file": authority.certificate, "certificate_file": certificate, "key_file": key}
        assert await round_trip(endpoints=etcd.endpoints, **known) == b"1"
        with pytest.raises(UnavailableError):
            await round_trip(within_s=2.0, endpoints=etcd.endpoints, ca_file=authority.certificate)
        certificate, key = stranger.issue("client")
        unknown = {"ca_file": authority.certificate, "certificate_file": certificate, "key_file": key}
        with pytest.raises(UnavailableError):
            await round_trip(within_s=2.0, endpoints=etcd.endpoints, **unknown)
        lease = await KeptLease.take(EtcdConfig(endpoints=etcd.endpoints, **known), ttl_s=2, progress_deadline_s=9)
        await lease.release()


async def test_a_certificates_common_name_is_the_user(binary, authority):
    with LocalEtcd(binary=binary, tls=True, extra=server_flags(authority, client_certificates=True)) as etcd:
        certificates = {name: authority.issue(name) for name in ("root", USER, "nobody")}

        def settings(name):
            certificate, key = certificates[name]
            pair = {"certificate_file": certificate, "key_file": key}
            return EtcdConfig(endpoints=etcd.endpoints, ca_file=authority.certificate, **pair)

        async with EtcdClient(settings("root")) as admin:
            await enable_users(admin.session.endpoints.current.channel, user=USER, password=PASSWORD, prefix=PREFIX)
        async with EtcdClient(settings(USER)) as client:
            await client.put(f"{PREFIX}a", b"1")
            with pytest.raises(PermissionDeniedError):
                await client.put("/elsewhere", b"1")
        async with EtcdClient(settings("nobody")) as client:
            with pytest.raises((PermissionDeniedError, AuthenticationError)):
                await client.put(f"{PREFIX}a", b"1")


@pytest.fixture
async def guarded(binary, tmp_path):
    """A one-node cluster with a user, and that user's settings."""
    with LocalEtcd(binary=binary) as etcd:
        async with plain_channel(etcd.endpoints[0]) as channel:
            await enable_users(channel, user=USER, password=PASSWORD, prefix=PREFIX)
        secret = tmp_path / "password"
        secret.write_text(PASSWORD + "\n")
        yield etcd, EtcdConfig(endpoints=etcd.endpoints, user=USER, password_file=str(secret)), secret


async def test_a_user_reads_and_writes_its_prefix_only(guarded):
    _, config, _ = guarded
    async with EtcdClient(config) as client:
        await client.put(f"{PREFIX}a", b"1")
        for denied in (client.put("/elsewhere", b"1"), client.get("/elsewhere"), client.delete("/elsewhere/")):
            with pytest.raises(PermissionDeniedError):
                await denied
        async with aclosing(Watch(client, "/elsewhere/", after=1).changes()) as changes:
            with pytest.raises(PermissionDeniedError):
                await anext(changes)
        async with aclosing(Watch(client, PREFIX).changes()) as changes:
            assert [event.key for event in (await anext(changes)).events] == [f"{PREFIX}a"]


async def test_a_wrong_password_is_an_error_of_its_own(guarded):
    _, config, secret = guarded
    secret.write_text("wrong")
    async with EtcdClient(config) as client:
        with pytest.raises(AuthenticationError, match="invalid user ID or password"):
            await client.get(f"{PREFIX}a")


async def test_a_refused_token_is_renewed_under_call_watch_and_keeper(guarded):
    etcd, config, secret = guarded
    async with EtcdClient(config) as client, plain_channel(etcd.endpoints[0]) as channel:
        lease = await KeptLease.take(config, ttl_s=2, progress_deadline_s=30)
        await client.put(f"{PREFIX}a", b"1", lease=lease.lease)
        first = client.session._token
        async with aclosing(Watch(client, PREFIX).changes()) as changes:
            await anext(changes)
            # a new password voids the user's tokens, and has to be read from the file again
            change = messages.AuthUserChangePasswordRequest(name=USER, password=ROTATED)
            await as_root(channel, change)
            secret.write_text(ROTATED)
            written = await client.put(f"{PREFIX}b", b"")
            assert client.session._token != first
            async with asyncio.timeout(5):
                assert (await anext(changes)).revision == written
            etcd.restart(etcd.members[0])
            written = await _until_written(client, f"{PREFIX}c")
            async with asyncio.timeout(5):
                assert (await anext(changes)).revision == written
        await asyncio.sleep(3)
        assert (await client.get(f"{PREFIX}a")).only is not None, "the keeper goes on too"
        await lease.release()
        assert (await client.get(f"{PREFIX}a")).only is None


async def _until_written(client, key):
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.put(key, b"")
            except UnavailableError:
                await asyncio.sleep(0.1)


async def test_a_change_of_users_does_not_disturb_who_is_logged_in(guarded):
    etcd, config, _ = guarded
    async with EtcdClient(config) as client, plain_channel(etcd.endpoints[0]) as channel:
        await client.put(f"{PREFIX}a", b"1")
        for name in ("x", "y"):
            await as_root(channel, messages.AuthUserAddRequest(name=name, password=PASSWORD))
            await client.put(f"{PREFIX}a", b"2")


async def test_a_password_file_that_cannot_be_read_is_named(guarded):
    _, config, secret = guarded
    secret.unlink()
    async with EtcdClient(config) as client:
        with pytest.raises(AuthenticationError, match=f"{secret} cannot be read"):
            await client.get(f"{PREFIX}a")


async def test_many_callers_authenticate_once(guarded):
    _, config, _ = guarded
    async with EtcdClient(config) as client:
        tokens = set()

        async def call(index):
            await client.put(f"{PREFIX}{index}", b"")
            tokens.add(client.session._token)

        await asyncio.gather(*(call(index) for index in range(20)))
        assert len(tokens) == 1
