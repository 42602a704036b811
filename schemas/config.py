"""Settings: one TOML file for every process of an instance; each reads the sections it needs.

Units stand in the key names. ``deploy/eep.toml`` is the commented default file, written from the defaults and
docstrings here by ``tools/config --write``. A bad value is a ``ConfigError`` that names key, value and remedy.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.policy import OnTimeout, Survivability

Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]


class ConfigError(ValueError):
    """A setting that cannot be used: correct ``key`` in ``source`` and start again."""

    def __init__(self, source: str, key: str, value: object, remedy: str) -> None:
        self.source = source
        self.key = key
        self.value = value
        self.remedy = remedy
        super().__init__(f"{source}: {key} = {value!r}: {remedy}")


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every section."""


def _patient(progress_deadline_s: float, lease_ttl_s: int) -> None:
    if progress_deadline_s < lease_ttl_s:
        raise ValueError(
            f"progress_deadline_s {progress_deadline_s} is below lease_ttl_s {lease_ttl_s}: a pause that the lease "
            "survives must not cost it; raise progress_deadline_s"
        )


class InstanceConfig(Section, frozen=True, kw_only=True):
    """What all processes must agree on."""

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


class EtcdConfig(Section, frozen=True, kw_only=True):
    """Where etcd is, how to prove who we are, and how long to wait for it."""

    endpoints: Annotated[tuple[str, ...], Meta(min_length=1)] = ("http://127.0.0.1:2379",)
    """Client address of every member; https:// turns TLS on."""
    ca_file: str = ""
    """PEM file of the authority that signed the members' certificates; empty uses the system's."""
    certificate_file: str = ""
    """PEM file of this client's certificate, for mutual TLS."""
    key_file: str = ""
    """PEM file of its private key."""
    user: str = ""
    """etcd user; empty does not authenticate by password."""
    password_file: str = ""
    """File with the user's password; read again at every authentication."""
    connect_timeout_s: Seconds = 0.5
    """A member that is not connected within this is passed by."""
    request_timeout_s: Seconds = 1.0
    """One attempt at one member."""
    deadline_s: Seconds = 5.0
    """All attempts of one call together."""
    probe_interval_s: Seconds = 0.3
    """A quiet watch asks for a sign of life this often; where there is one member only, which nobody could leave for
    another, five times as rarely."""
    silence_timeout_s: Seconds = 0.4
    """A probe unanswered for this long makes the member suspect."""
    confirm_timeout_s: Seconds = 0.4
    """A suspect member that does not answer a read within this is left; the three together bound the failover."""
    avoid_s: Seconds = 5.0
    """A member that failed is not chosen again for this long while another is there."""
    ping_interval_s: Annotated[float, Meta(ge=5)] = 5.0
    """gRPC keep-alive; not below 5: etcd closes the connection of a client that pings faster."""
    ping_timeout_s: Seconds = 1.0
    """A ping unanswered for this long breaks the connection."""

    def __post_init__(self) -> None:
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file and key_file belong together: set both or neither")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file belong together: set both or neither")
        plain = [url for url in self.endpoints if not url.startswith("https://")]
        if self.ca_file + self.certificate_file and plain:
            raise ValueError(f"certificates are set, but {plain[0]} is not https: write https:// or unset them")


class ControlPlaneConfig(Section, frozen=True, kw_only=True):
    """Coordinator, admin API and dashboard."""

    host: str = "127.0.0.1"
    """Address that the admin API listens on."""
    port: Port = 8470
    """Its port; 0 takes a free one."""
    advertise_url: str = ""
    """How other replicas redirect to this one; empty for http://host:port."""
    tokens_file: str = ""
    """Bearer tokens: lines of ``role name token``; empty leaves only health open."""
    certificate_file: str = ""
    """PEM file to serve https with."""
    key_file: str = ""
    """Its private key."""
    client_ca_file: str = ""
    """Turns mutual TLS on; the certificate's CN is the role."""
    lease_ttl_s: Count = 3
    """Whole seconds until a replica on a lost host is replaced; a dead process is seen at once."""
    progress_deadline_s: Seconds = 30.0
    """A replica whose own loop stands still for so long loses its lease on purpose: it is wedged."""

    def __post_init__(self) -> None:
        _patient(self.progress_deadline_s, self.lease_ttl_s)
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file and key_file belong together: set both or neither")


class WorkerConfig(Section, frozen=True, kw_only=True):
    """An agent and its engine."""

    host: str = ""
    """This host's name in placements; empty for the system's."""
    rack: str = ""
    """The failure domain above the host."""
    serve_host: str = "127.0.0.1"
    """Address on which SGLang serves, as the gateway reaches it."""
    first_port: Port = 0
    """Rank r serves on first_port + r; 0 lets the system choose."""
    slots: Annotated[int, Meta(ge=0)] = 0
    """Slots of this host's ranks where they differ from the instance's; 0 for the same."""
    speed: Annotated[float, Meta(gt=0)] = 1.0
    """Relative speed of this host's ranks."""
    device: Literal["cpu", "cuda"] = "cpu"
    """SGLang's --device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """SGLang's --dtype."""
    max_total_tokens: Count = 16384
    """Tokens in the KV cache."""
    chunked_prefill: Count = 512
    """Longest prefill of one step, in tokens; also the rows of one dispatch round. Ranks step together, so every client
    waits for a step like that; a smaller one takes more steps to a long prompt's first token."""
    engine_arguments: tuple[str, ...] = ()
    """More arguments for sglang.launch_server."""
    lease_ttl_s: Count = 5
    """Whole seconds; a dead process is seen in milliseconds, this is for a lost host."""
    progress_deadline_s: Seconds = 30.0
    """An agent whose own loop stands still for so long loses its lease on purpose: it is wedged."""
    silence_s: Seconds = 1.0
    """A peer whose beacon stands still for so long is suspected."""
    step_deadline_s: Seconds = 30.0
    """No wait inside a step is longer."""
    background_mb_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """Loads of a planned change take no more than this, so that serving keeps memory and disk; 0 for no limit."""
    start_deadline_s: Seconds = 600.0
    """An engine that is not ready by then is started again."""
    stop_deadline_s: Seconds = 60.0
    """From SIGTERM to the end: time to be drained."""
    first_backoff_s: Seconds = 0.2
    """Wait before an engine that died is started again; doubles with every death."""
    longest_backoff_s: Seconds = 30.0
    """The longest wait."""
    best_effort: bool = False
    """Go on without experts that no rank holds (flagged in answers) instead of waiting for them."""
    backup_share: Share = 1.0
    """Share of all experts that this host keeps in memory, 0 for none."""
    backup_hosts: tuple[str, ...] = ()
    """All hosts in a fixed order, so that their shares overlap evenly; empty for this host alone."""
    metrics_port: Port = 0
    """Rank r's agent serves /metrics on metrics_port + r; 0 for nowhere."""

    def __post_init__(self) -> None:
        _patient(self.progress_deadline_s, self.lease_ttl_s)


class GatewayConfig(Section, frozen=True, kw_only=True):
    """The clients' front door."""

    host: str = "127.0.0.1"
    """Address that clients connect to."""
    port: Port = 8480
    """Its port; 0 takes a free one."""
    audit_file: str = ""
    """One JSON line for the end of each accepted request; empty for standard output."""
    max_running: Count = 256
    """Requests that run at the same time."""
    max_queued: Annotated[int, Meta(ge=0)] = 1024
    """Beyond this clients get 429 with Retry-After."""
    request_deadline_s: Seconds = 600.0
    """From acceptance to the last token."""
    model_name: str = ""
    """What clients call the model; empty for its folder's name."""
    context_tokens: Annotated[int, Meta(ge=0)] = 0
    """Longest prompt and answer together, where the ranks' KV cache is smaller than the model's context; 0 for that."""
    seeded_ranks: bool = False
    """Ranks run with --enable-deterministic-inference ([worker] engine_arguments): sampled answers resume exactly."""
    no_rank_wait_s: Seconds = 30.0
    """How long a new request waits while no rank serves, before it gets 503."""
    stall_s: Seconds = 5.0
    """A rank that says nothing for so long while others speak loses its requests to them."""
    handover_after_s: Seconds = 5.0
    """Time that requests on a draining rank have to end by themselves before another rank takes them over."""
    crash_limit: Count = 2
    """A request is given up once so many ranks died before it got anywhere on them."""


class PolicyConfig(Section, frozen=True, kw_only=True):
    """Written to etcd once, as ``schemas.policy.Spec`` explains each."""

    ranks: Annotated[int, Meta(ge=0, le=128)] = 0
    form_wait_s: Seconds = 5.0
    survivability: Survivability = Survivability.RANK
    """Which single loss must cost no expert its last replica: none, rank or host."""
    prepare_deadline_s: Seconds = 120.0
    abort_deadline_s: Seconds = 30.0
    on_timeout: OnTimeout = OnTimeout.ROLLBACK
    """Planned change, and an active rank does not acknowledge in time: rollback, or exclude the rank."""
    slow_wait_share: Share = 0.3
    """A rank is slow when its peers wait for it this part of their time; 1 judges by their complaints alone."""
    slow_drain_s: Seconds = 60.0
    """A rank that stays slow for this long, with less and less to do, is drained."""
    flap_window_s: Seconds = 600.0
    """Losses of one rank within this are counted together."""
    flap_limit: Count = 4
    backoff_s: Seconds = 1.0


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    instance: InstanceConfig = InstanceConfig()
    etcd: EtcdConfig = EtcdConfig()
    policy: PolicyConfig = PolicyConfig()
    controlplane: ControlPlaneConfig = ControlPlaneConfig()
    gateway: GatewayConfig = GatewayConfig()
    worker: WorkerConfig = WorkerConfig()


def load_config(path: str | Path) -> Config:
    """Read a file.

    Raises:
        ConfigError: it is not there, not TOML, or holds a key or value that cannot be used.
    """
    source = str(path)
    try:
        return parse_config(Path(path).read_text(encoding="utf-8"), source=source)
    except OSError as error:
        raise ConfigError(source, "file", source, f"cannot be read: {error.strerror}") from error


def parse_config(text: str, *, source: str) -> Config:
    """Read a file's text; ``source`` stands in errors. Raises as ``load_config``."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(source, "file", source, f"is not TOML: {error}") from error
    _refuse_unknown(raw, Config, "", source)
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise _named(error, raw, source) from error


def check_files(config: Config, *, source: str) -> None:
    """Read every file that the configuration names, as the processes will.

    Raises:
        ConfigError: one cannot be read.
    """
    for section in msgspec.structs.fields(Config):
        values = getattr(config, section.name)
        for field in msgspec.structs.fields(values):
            path = getattr(values, field.name)
            if field.name.endswith("_file") and path:
                try:
                    Path(path).read_bytes()
                except OSError as error:
                    key = f"{section.name}.{field.name}"
                    raise ConfigError(source, key, path, f"cannot be read: {error.strerror}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors and linters."""
    return msgspec.json.schema(Config)


def _refuse_unknown(raw: dict[str, Any], kind: type[msgspec.Struct], above: str, source: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {above}{close[0]}?" if close else f"known are {', '.join(fields)}"
            raise ConfigError(source, f"{above}{key}", value, f"is no setting; {hint}")
        inner = fields[key]
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _refuse_unknown(value, inner, f"{above}{key}.", source)


def _named(error: msgspec.ValidationError, raw: dict[str, Any], source: str) -> ConfigError:
    """From msgspec's "what - at `$.section.key`" to the key first and the value beside it."""
    what, _, where = str(error).partition(" - at ")
    key = where.strip("`").removeprefix("$.") or "file"
    value: Any = raw
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit():
            value = value[int(part)]
    return ConfigError(source, key, value, what[:1].lower() + what[1:])
