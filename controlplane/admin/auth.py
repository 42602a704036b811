"""Who may do what: bearer tokens from a file, or client certificates by their common name.

Deny by default: with neither configured every request but health is refused. A token file has one line per token::

    # role     name      token
    operator   alice     3f0c…
    viewer     grafana   9b1d…

It is read again when it changes, so tokens are rotated without a restart.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, cast

from controlplane.admin.errors import UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from ssl import SSLObject

    from aiohttp import web

LOG = logging.getLogger("eep.admin.auth")
MIN_TOKEN = 16


class Role(IntEnum):
    """What a caller may do; a higher one may do all that a lower one may."""

    NOBODY = 0
    VIEWER = 1
    OPERATOR = 2

    @classmethod
    def named(cls, name: str) -> Role:
        """The role that a configuration file calls ``name``.

        Raises:
            ValueError: there is no such role.
        """
        roles = {"viewer": cls.VIEWER, "operator": cls.OPERATOR}
        if name not in roles:
            raise ValueError(f"role {name!r} is not known; use viewer or operator")
        return roles[name]


@dataclass(frozen=True)
class Identity:
    """Who calls; ``name`` goes to the audit."""

    name: str
    role: Role


@dataclass(frozen=True)
class _Token:
    secret: bytes
    identity: Identity


class TokenFileError(ValueError):
    """A line of the token file is wrong; the message says which and how, never the token."""


def parse_tokens(text: str, *, source: str) -> tuple[_Token, ...]:
    """Read a token file.

    Raises:
        TokenFileError: a line is not ``role name token``, or a token is too short or stands there twice.
    """
    tokens: list[_Token] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        where = f"{source}, line {number}"
        if len(words) != 3:
            raise TokenFileError(f"{where}: {len(words)} words; write: role name token")
        role, name, secret = words
        if len(secret) < MIN_TOKEN:
            raise TokenFileError(f"{where}: {name}'s token has {len(secret)} characters; use {MIN_TOKEN} or more")
        if any(token.secret == secret.encode() for token in tokens):
            raise TokenFileError(f"{where}: {name}'s token stands in another line too; give each its own")
        try:
            tokens.append(_Token(secret.encode(), Identity(name, Role.named(role))))
        except ValueError as error:
            raise TokenFileError(f"{where}: {error}") from error
    return tuple(tokens)


class TokenFile:
    """A token file on disk, re-read when it changes; a damaged new version is logged and the old one stays in force."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
        self._tokens = parse_tokens(path.read_text(), source=str(path))

    def _stat(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _refresh(self) -> None:
        try:
            stamp = self._stat()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._tokens = parse_tokens(self._path.read_text(), source=str(self._path))
        except (OSError, TokenFileError) as error:
            LOG.error("token file not reloaded, the previous tokens stay in force: %s", error)  # noqa: TRY400 - no trace

    def identify(self, presented: str) -> Identity | None:
        """Whose token this is; the time taken does not depend on how much of it is right."""
        self._refresh()
        found: Identity | None = None
        for token in self._tokens:  # all are compared, so that the position of the right one does not show either
            if hmac.compare_digest(token.secret, presented.encode()):
                found = token.identity
        return found


@dataclass(frozen=True)
class Authentication:
    """How callers are recognised.

    Attributes:
        tokens: the token file, if there is one.
        certificates: common name of a verified client certificate → role; needs TLS with a client CA.
        anonymous: role of a caller that presents nothing; above NOBODY only for a demonstration on loopback.
    """

    tokens: TokenFile | None = None
    certificates: Mapping[str, Role] = field(default_factory=dict)
    anonymous: Role = Role.NOBODY

    def identify(self, request: web.Request) -> Identity:
        """Who sends ``request``.

        Raises:
            UnauthenticatedError: a token or certificate was presented and is not known, or none was and one is needed.
        """
        header = request.headers.get("Authorization")
        if header is not None:
            return self._bearer(header)
        if (name := _common_name(request)) is not None and name in self.certificates:
            return Identity(name, self.certificates[name])
        if self.anonymous is not Role.NOBODY:
            return Identity("anonymous", self.anonymous)
        raise UnauthenticatedError(
            "This needs a token.",
            field="header.Authorization",
            remedy="Send `Authorization: Bearer <token>`; with eepctl, --token-file or EEP_TOKEN.",
        )

    def _bearer(self, header: str) -> Identity:
        scheme, _, token = header.partition(" ")
        identity = self.tokens.identify(token.strip()) if self.tokens and scheme.lower() == "bearer" else None
        if identity is None:
            raise UnauthenticatedError(
                "This token is not known here.",
                field="header.Authorization",
                remedy="Send `Authorization: Bearer <token>` with a token of this instance's token file.",
            )
        return identity


def _common_name(request: web.Request) -> str | None:
    """CN of the client certificate that TLS has verified, None without one."""
    channel: SSLObject | None = request.get_extra_info("ssl_object")
    certificate = channel.getpeercert() if channel is not None else None
    if not certificate:
        return None
    parts = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
    return next((value for part in parts for name, value in part if name == "commonName"), None)
