"""A client certificate stands for a role; one that the CA did not sign does not even connect."""

from __future__ import annotations

import shutil
import ssl
import subprocess

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from controlplane.admin import Authentication, Role, make_app
from controlplane.telemetry import ControlPlaneMetrics

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


def authority(folder, name):
    openssl(
        folder,
        *f"req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {name}.key -out {name}.pem".split(),
        "-subj",
        "/CN=ca",
    )


def certificate(folder, name, *, ca):
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(folder, *f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr".split(), "-subj", f"/CN={name}")
    openssl(
        folder,
        *f"x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial".split(),
        *f"-days 2 -extfile extensions -out {name}.pem".split(),
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "stranger-ca"):
        authority(folder, name)
    for name in ("server", "alice", "grafana", "unlisted"):
        certificate(folder, name, ca="ca")
    certificate(folder, "mallory", ca="stranger-ca")
    return folder


def server_side(certificates):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
    context.verify_mode = ssl.CERT_OPTIONAL  # health needs no certificate
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


def client_side(certificates, name):
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if name:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


@pytest.fixture
async def running(instance, certificates):
    registry = CollectorRegistry()
    app = make_app(
        reader=instance,
        archive=instance.archive,
        predictor=instance,
        authentication=Authentication(certificates={"alice": Role.OPERATOR, "grafana": Role.VIEWER}),
        metrics=ControlPlaneMetrics(registry),
        registry=registry,
    )
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=server_side(certificates))
    yield server
    await server.close()


@pytest.mark.parametrize(
    ("name", "reading", "changing"),
    [("alice", 200, 202), ("grafana", 200, 403), ("unlisted", 401, 401), (None, 401, 401)],
)
async def test_the_common_name_gives_the_role(running, certificates, instance, *, name, reading, changing):
    connector = aiohttp.TCPConnector(ssl=client_side(certificates, name))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get(running.make_url("/livez")) as answer:
            assert answer.status == 200
        async with session.get(running.make_url("/v1/cluster")) as answer:
            assert answer.status == reading
        async with session.post(running.make_url("/v1/ranks/1:cordon"), json={"reason": "x"}) as answer:
            assert answer.status == changing
    assert [operation.who for operation in await instance.archive.operations()] == ["alice"] * (changing == 202)


async def test_a_certificate_of_another_authority_does_not_connect(running, certificates):
    connector = aiohttp.TCPConnector(ssl=client_side(certificates, "mallory"))
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await session.get(running.make_url("/livez"))
