"""Settings: one TOML file for every process of an instance; each reads the sections it needs.

Units stand in the key names. ``schemas/eep.toml`` is the commented default file; a bad value is a ``ConfigError`` that
names the key, the value and the remedy.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0)]


class EtcdConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[etcd]``: where etcd is, how to prove who we are, and how long to wait for it."""

    endpoints: Annotated[tuple[str, ...], Meta(min_length=1)] = ("http://127.0.0.1:2379",)
    """Every member; ``https://`` turns TLS on."""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""
    connect_timeout_s: Seconds = 0.5
    request_timeout_s: Seconds = 1.0
    """One attempt at one member."""
    deadline_s: Seconds = 5.0
    """All attempts of one call together."""
    probe_interval_s: Seconds = 0.3
    silence_timeout_s: Seconds = 0.6
    """A watch probe unanswered for this long makes the member suspect."""
    confirm_timeout_s: Seconds = 0.4
    """A suspect member that does not answer a read within this is left."""
    avoid_s: Seconds = 5.0
    """A member that failed is not chosen again for this long while another is there."""
    ping_interval_s: Annotated[float, Meta(ge=5)] = 5.0
    """Not below 5: etcd closes the connection of a client that pings faster."""
    ping_timeout_s: Seconds = 1.0
