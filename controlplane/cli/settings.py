"""Where the API is and how to prove who asks: flags, then ``EEP_*``, then a file, then the default.

The file is ``$EEP_CONFIG`` or ``~/.config/eep/eepctl.toml``, with the keys of ``Settings``::

    endpoints = ["https://cp-0:8470", "https://cp-1:8470"]
    token_file = "/etc/eep/operator-token"
    ca_file = "/etc/eep/ca.pem"
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from controlplane.cli.exits import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_ENDPOINT = "http://127.0.0.1:8470"
DEFAULT_FILE = Path("~/.config/eep/eepctl.toml")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach one instance's admin API."""

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    """Replicas, any order; the leader is found by asking."""
    token: str = ""
    token_file: str = ""
    ca_file: str = ""
    """PEM file of the authority that signed the replicas' certificates; empty uses the system's."""
    certificate_file: str = ""
    key_file: str = ""
    timeout_s: float = 10.0
    """One request, redirects included."""

    @property
    def bearer(self) -> str:
        """The token to send, empty for none.

        Raises:
            UsageError: the token file cannot be read or is empty.
        """
        if self.token or not self.token_file:
            return self.token
        try:
            words = Path(self.token_file).expanduser().read_text().split()
        except OSError as error:
            raise UsageError(f"token file {self.token_file}: {error.strerror}; check --token-file") from error
        if not words:
            raise UsageError(f"token file {self.token_file} is empty")
        return words[-1]  # either the token alone, or the line of the server's file: role name token

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The TLS context for https endpoints, None when the defaults suffice.

        Raises:
            UsageError: a certificate file cannot be used.
        """
        if not (self.ca_file or self.certificate_file):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.certificate_file:
                context.load_cert_chain(self.certificate_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"certificates {self.ca_file} {self.certificate_file}: {error}") from error
        return context


def resolve(flags: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Settings from all places, the nearest first.

    Args:
        flags: keys of ``Settings`` and ``config``; None or empty for what was not given.
        environment: where ``EEP_*`` is read: ``EEP_ENDPOINTS`` (comma-separated), ``EEP_TOKEN``, ``EEP_TOKEN_FILE``,
            ``EEP_CA_FILE``, ``EEP_CERTIFICATE_FILE``, ``EEP_KEY_FILE``, ``EEP_TIMEOUT_S`` and ``EEP_CONFIG``.

    Raises:
        UsageError: the file cannot be read, or a value is wrong; it is named.
    """
    chosen: dict[str, object] = _from_file(str(flags.get("config") or environment.get("EEP_CONFIG") or ""))
    for name in Settings.__struct_fields__:
        said = environment.get(f"EEP_{name.upper()}")
        if said:
            chosen[name] = [one.strip() for one in said.split(",")] if name == "endpoints" else said
        if flags.get(name):
            chosen[name] = flags[name]
    try:
        return msgspec.convert(chosen, type=Settings, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"eepctl's settings: {error}") from error


def _from_file(asked: str) -> dict[str, object]:
    path = (Path(asked) if asked else DEFAULT_FILE).expanduser()
    if not asked and not path.exists():
        return {}
    try:
        return msgspec.toml.decode(path.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"configuration file {path}: {error}") from error
