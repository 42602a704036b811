"""Certificates and users for a test cluster."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from aetcd import rpc

from controlplane.etcd.rpc import rpc as messages

if TYPE_CHECKING:
    from pathlib import Path

ROOT_PASSWORD = "root-password"  # noqa: S105  of a cluster that lives for one test


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder."""

    folder: Path

    @property
    def certificate(self):
        return str(self.folder / "ca.pem")

    def issue(self, name):
        """A certificate and key for ``name`` (the subject's CN), valid on loopback."""
        key, request, certificate = (self.folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        _openssl("req", "-newkey", *CURVE, "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        extension = self.folder / f"{name}.ext"
        extension.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        authority = ("-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *authority, "-days", "2", "-out", certificate, "-extfile", extension)
        return str(certificate), str(key)


CURVE = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def make_authority(folder, name="test authority"):
    folder.mkdir(parents=True)
    outputs = ("-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    _openssl("req", "-x509", "-newkey", *CURVE, "-nodes", "-days", "2", *outputs, "-subj", f"/CN={name}")
    return Authority(folder)


def _openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=20)


def server_flags(authority, *, client_certificates):
    """What a member needs to serve https, and to demand certificates of its clients."""
    certificate, key = authority.issue("server")
    flags = [f"--cert-file={certificate}", f"--key-file={key}"]
    if client_certificates:
        flags += [f"--trusted-ca-file={authority.certificate}", "--client-cert-auth"]
    return flags


async def enable_users(channel, *, user, password, prefix):
    """Turn authentication on: root, and ``user`` that may read and write below ``prefix`` only."""
    auth = rpc.AuthStub(channel)
    await auth.UserAdd(messages.AuthUserAddRequest(name="root", password=ROOT_PASSWORD))
    await auth.RoleAdd(messages.AuthRoleAddRequest(name="root"))
    await auth.UserGrantRole(messages.AuthUserGrantRoleRequest(user="root", role="root"))
    await auth.UserAdd(messages.AuthUserAddRequest(name=user, password=password))
    await auth.RoleAdd(messages.AuthRoleAddRequest(name="eep"))
    permission = messages.Permission(
        permType=messages.Permission.READWRITE, key=prefix.encode(), range_end=prefix[:-1].encode() + b"0"
    )
    await auth.RoleGrantPermission(messages.AuthRoleGrantPermissionRequest(name="eep", perm=permission))
    await auth.UserGrantRole(messages.AuthUserGrantRoleRequest(user=user, role="eep"))
    await auth.AuthEnable(messages.AuthEnableRequest())


async def as_root(channel, request):
    """Run one auth request as root."""
    auth = rpc.AuthStub(channel)
    login = await auth.Authenticate(messages.AuthenticateRequest(name="root", password=ROOT_PASSWORD))
    method = getattr(auth, type(request).__name__.removeprefix("Auth").removesuffix("Request"))
    return await method(request, metadata=(("token", login.token),))


def plain_channel(url):
    return grpc.aio.insecure_channel(url.partition("://")[2])
