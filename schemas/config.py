"""Settings: one TOML file for every process of an instance; each reads the sections it needs.

Units stand in the key names. ``schemas/eep.toml`` is the commented default file; a bad value is a ``ConfigError`` that
names the key, the value and the remedy.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from schemas.policy import OnTimeout, Survivability

if TYPE_CHECKING:
    from pathlib import Path

Seconds = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]


class ConfigError(ValueError):
    """A setting that cannot be used: names the file, the key, the value's fault and the remedy."""


class InstanceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[instance]``: what all processes must agree on."""

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$")] = "default"
    """Part of every etcd key: two instances in one etcd need two names."""
    model: str = ""
    """Folder of the checkpoint, the same on every host."""
    max_ranks: Annotated[int, Meta(ge=1, le=128)] = 8
    """Rank slots; fixed for the life of the instance, active ranks may be fewer."""
    slots_per_rank: Count = 16
    """Expert slots of every MoE layer on a rank."""
    run_dir: str = "/run/eep"
    """Sockets, control blocks and the host-memory backup: on tmpfs."""


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


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[worker]``: an agent and its engine."""

    host: str = ""
    """This host's name in placements; empty for the system's."""
    rack: str = ""
    serve_host: str = "127.0.0.1"
    """Address on which SGLang serves, as the gateway reaches it."""
    first_port: Port = 0
    """Rank r serves on first_port + r; 0 lets the system choose."""
    slots: Annotated[int, Meta(ge=0)] = 0
    """Slots of this host's ranks where they differ from the instance's; 0 for the same."""
    speed: Annotated[float, Meta(gt=0)] = 1.0
    """Relative speed of this host's ranks."""
    device: str = "cpu"
    """SGLang's --device."""
    dtype: str = "float32"
    max_total_tokens: Count = 16384
    """Tokens in the KV cache."""
    chunked_prefill: Count = 512
    """Longest prefill of one step, in tokens; also the rows of one dispatch round."""
    engine_arguments: tuple[str, ...] = ()
    """More arguments for sglang.launch_server."""
    lease_ttl_s: Count = 5
    """Whole seconds; a dead process is seen in milliseconds, this is for a lost host."""
    silence_s: Seconds = 1.0
    """A peer whose beacon stands still for so long is suspected."""
    step_deadline_s: Seconds = 30.0
    """No wait inside a step is longer."""
    start_deadline_s: Seconds = 600.0
    """An engine that is not ready by then is started again."""
    stop_deadline_s: Seconds = 60.0
    """From SIGTERM to the end: time to be drained."""
    first_backoff_s: Seconds = 0.2
    longest_backoff_s: Seconds = 30.0
    best_effort: bool = False
    """Go on without experts that no rank holds (flagged in answers) instead of waiting for them."""
    backup_share: Share = 1.0
    """Share of all experts that this host keeps in memory, 0 for none."""
    backup_hosts: tuple[str, ...] = ()
    """All hosts in a fixed order, so that their shares overlap evenly; empty for this host alone."""
    metrics_port: Port = 0
    """Rank r's agent serves /metrics on metrics_port + r; 0 for nowhere."""


class ControlPlaneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[controlplane]``: coordinator, admin API and dashboard."""

    host: str = "127.0.0.1"
    port: Port = 8470
    advertise_url: str = ""
    """How other replicas redirect to this one; empty for http://host:port."""
    tokens_file: str = ""
    """Bearer tokens: lines of ``role name token``; empty leaves only health open."""
    certificate_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    """Turns mutual TLS on; the certificate's CN is the role."""
    lease_ttl_s: Count = 3


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[gateway]``: the clients' front door."""

    host: str = "127.0.0.1"
    port: Port = 8480
    audit_file: str = ""
    """One JSON line for the end of each accepted request; empty for standard output."""
    max_running: Count = 256
    max_queued: Annotated[int, Meta(ge=0)] = 1024
    """Beyond this clients get 429 with Retry-After."""
    request_deadline_s: Seconds = 600.0
    stall_s: Seconds = 5.0
    """Silence of a rank after which its place in the epoch is looked at."""
    crash_limit: Count = 2
    """A request during which so many ranks died is given up."""


class PolicyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[policy]``: written to etcd once, as ``schemas.policy.Spec`` explains each."""

    ranks: Annotated[int, Meta(ge=0, le=128)] = 0
    form_wait_s: Seconds = 5.0
    survivability: Survivability = Survivability.RANK
    prepare_deadline_s: Seconds = 120.0
    abort_deadline_s: Seconds = 30.0
    on_timeout: OnTimeout = OnTimeout.ROLLBACK
    flap_window_s: Seconds = 600.0
    flap_limit: Count = 4
    backoff_s: Seconds = 1.0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    instance: InstanceConfig = InstanceConfig()
    etcd: EtcdConfig = EtcdConfig()
    policy: PolicyConfig = PolicyConfig()
    controlplane: ControlPlaneConfig = ControlPlaneConfig()
    gateway: GatewayConfig = GatewayConfig()
    worker: WorkerConfig = WorkerConfig()


def load_config(path: Path) -> Config:
    """Read and check a file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or a key or value is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Remedy: name an existing file with --config") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        return msgspec.convert(values, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_where(values, str(error))}") from error


def _where(values: dict[str, object], problem: str) -> str:
    """Msgspec's message with the key in the file's own terms and the value that stands there."""
    what, _, place = problem.partition(" - at `$.")
    key = place.rstrip("`")
    found: object = values
    for name in key.replace("[...]", "").split("."):
        found = found.get(name) if isinstance(found, dict) else found
    if not key:
        return f"{what}. Remedy: see schemas/eep.toml for every key"
    section, _, name = key.rpartition(".")
    return f"[{section}] {name} = {found!r}: {what}. Remedy: see schemas/eep.toml for its meaning and range"
