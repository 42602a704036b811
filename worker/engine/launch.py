"""Starts one SGLang server as an elastic rank and ends its whole process tree."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from worker.cpu import seeded
from worker.cpu.boot import ENVIRONMENT as CPU_SHIMS
from worker.engine import settings as engine_settings
from worker.engine.errors import SettingsError
from worker.engine.tether import tethered
from worker.engine.tree import EngineTree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.engine.settings import EngineSettings

SERVER = "sglang.launch_server"
_MAX_GRAPH = 256
"""Largest batch that has a decode graph."""
_WATCHDOG_S = 3600
"""SGLang's watchdog fires on healthy ranks when a peer stalls (irrevocably): ours end a step long before."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How SGLang serves as this rank.

    Attributes:
        settings: the rank's place in the instance; ``serve_url`` must be ``http://host:port``.
        host: where HTTP listens.
        port: its port.
        folder: for the settings file and the log.
        device: ``cpu`` or ``cuda``.
        dtype: of weights and activations.
        max_total_tokens: KV cache, in tokens.
        chunked_prefill: longest prefill of one step, in tokens; None is SGLang's own choice.
        overlap: SGLang's overlap scheduling; None: only beside a device. On a CPU there is nothing to hide the
            scheduler's work behind, and a step without it is a quarter shorter.
        cores: CPU list to run on ("0-3"); empty leaves it to the system.
        threads: OpenMP threads of one rank.
        seed: of sampling.
        extra: further SGLang arguments.
    """

    settings: EngineSettings
    host: str
    port: int
    folder: Path
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_total_tokens: int = 4096
    chunked_prefill: int | None = None
    overlap: bool | None = None
    cores: str = ""
    threads: int = 1
    seed: int = 1
    extra: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where the server's output goes."""
        return self.folder / f"engine-{self.settings.rank}-{self.settings.incarnation}.log"


def arguments(config: EngineConfig) -> list[str]:
    """What follows the server's name on SGLang's command line."""
    parts = ["--model-path", config.settings.model_path, "--host", config.host, "--port", str(config.port)]
    parts += ["--nccl-port", str(free_port()), "--tp", "1", "--dtype", config.dtype]
    parts += ["--max-total-tokens", str(config.max_total_tokens), "--random-seed", str(config.seed)]
    parts += ["--sleep-on-idle", "--disable-shared-experts-fusion", "--skip-server-warmup"]
    parts.append("--incremental-streaming-output")  # else every event repeats the whole answer: work that grows with it
    parts += ["--watchdog-timeout", str(_WATCHDOG_S)]
    if config.chunked_prefill is not None:
        parts += ["--chunked-prefill-size", str(config.chunked_prefill)]
    if not (config.device != "cpu" if config.overlap is None else config.overlap):
        parts.append("--disable-overlap-schedule")
    if config.device == "cpu":
        parts += ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
        parts += ["--disable-cuda-graph", "--mem-fraction-static", "0.3"]
        parts.append("--enable-mixed-chunk")  # who has tokens already gets one beside a prefill, not after it
    else:
        parts += ["--device", "cuda", "--moe-runner-backend", _runner(Path(config.settings.model_path))]
        # Prefills run eagerly, in rounds; a decode graph holds one round of at most max_tokens rows.
        parts += ["--cuda-graph-backend-prefill", "disabled"]
        parts += ["--cuda-graph-max-bs-decode", str(min(config.settings.max_tokens, _MAX_GRAPH))]
    return [*parts, *config.extra]


def _runner(model: Path) -> str:
    """SGLang's experts for a checkpoint: DeepGEMM takes fp8 in blocks, triton everything unquantised."""
    try:
        quantised = json.loads((model / "config.json").read_bytes()).get("quantization_config") or {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"model {model}: config.json does not read: {error}. Remedy: name a checkpoint") from error
    return "deep_gemm" if quantised.get("quant_method") == "fp8" else "triton"


def environment(config: EngineConfig) -> dict[str, str]:
    """Variables for SGLang's process tree, on top of ours."""
    result = dict(os.environ)
    result[engine_settings.ENVIRONMENT] = str(config.folder / f"engine-{config.settings.rank}.json")
    result["SGLANG_PLUGINS"] = "eep"
    result.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    result["OMP_NUM_THREADS"] = str(config.threads)
    # Large pages: the kernel tears a dead engine down in a tenth of the time, and the survivors have the processor.
    result.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if config.device == "cpu":
        result[CPU_SHIMS] = "1"
        # Operators keep no books for gradients.
        result.setdefault("SGLANG_ENABLE_TORCH_INFERENCE_MODE", "1")
        result["SGLANG_USE_CPU_ENGINE"] = "1"
        if seeded.FLAG in config.extra:
            result["TORCHDYNAMO_DISABLE"] = "1"  # read where SGLang's sampler is imported
        # one group for our one rank; unset, SGLang insists on one NUMA node for each rank (numa_utils.py:463)
        result["SGLANG_CPU_OMP_THREADS_BIND"] = config.cores or _all_cores()
    else:
        result["SGLANG_OPT_FUSE_SWIGLU_INTERLEAVED"] = "0"  # it permutes w13 after loading, and slots are written later
    result.update(config.environment)
    return result


def _all_cores() -> str:
    return ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare(config: EngineConfig) -> dict[str, str]:
    """Write the settings that the engine will read; the variables of its processes.

    Raises:
        OSError: the folder cannot be written.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    variables = environment(config)
    config.settings.write(Path(variables[engine_settings.ENVIRONMENT]))
    return variables


class EngineProcess(EngineTree):
    """An engine that we start ourselves, imports and all."""

    def __init__(self, config: EngineConfig) -> None:
        """Write the settings and start."""
        self.config = config
        variables = prepare(config)
        with config.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", SERVER, *arguments(config)],
                env=variables,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=tethered(),  # noqa: PLW1509  nothing but two system calls
            )
        super().__init__(self.process.pid)

    def ended(self) -> int | None:
        """Exit status of the main process, None while it runs."""
        return self.process.poll()

    def kill(self, *, spare_heirs: bool = False) -> None:
        """As every tree is ended; the main process is reaped, too."""
        super().kill(spare_heirs=spare_heirs)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1.0)

    def end(self, *, within_s: float = 5.0) -> None:
        """Ask SGLang to stop, then kill what is left of the tree."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=within_s)
        self.kill()

    def log_text(self) -> str:
        """Everything the tree has written so far."""
        return self.config.log.read_text(errors="replace")

    def last_lines(self, count: int = 20) -> str:
        """What the engine said of itself, and the end of the log: for an error message."""
        lines = self.log_text().splitlines()
        return "\n".join([*(line for line in lines if line.startswith("eep: ")), *lines[-count:]])

    def wait_ended(self, *, within_s: float) -> int:
        """Exit status of the main process.

        Raises:
            TimeoutError: it still runs.
        """
        limit = time.monotonic() + within_s
        while (status := self.ended()) is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"engine of rank {self.config.settings.rank} still runs after {within_s} s")
            time.sleep(0.05)
        return status
