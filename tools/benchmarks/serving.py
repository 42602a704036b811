"""Serving: N elastic ranks against SGLang's own ``--tp N --ep-size N --enable-dp-attention --dp-size N`` over gloo.

Same model, same machine, same run. Both systems are up; their bursts alternate, and the one that is not measured is
stopped (SIGSTOP), so a machine that slows down does so for both. Requests are greedy, of fixed length, and streamed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import psutil

from tools.benchmarks.provenance import provenance
from tools.cluster.bare import BareCluster
from tools.cluster.traffic import generate
from worker.engine.launch import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tools.cluster.traffic import Answer

_MODEL = Path(__file__).parents[1] / "models" / "sprout"
_START_S = 300.0
_IDLE_S = 5.0
_WAKE_S = 0.5
"""Between SIGCONT and the first request: queued timers of a stopped process run out."""
_CONCURRENT = (1, 8)
_PROMPT = tuple(range(300, 332))


@dataclass(frozen=True)
class Load:
    """Throughput and latency of one concurrency.

    Attributes:
        concurrent: requests at once.
        tokens_per_s: output tokens of all requests over the wall time.
        tpot_ms: median over requests of the mean time per output token after the first.
        ttft_ms: median time to the first token.
    """

    concurrent: int
    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float


@dataclass(frozen=True)
class System:
    """One system under load.

    Attributes:
        start_s: from the first process to the last rank ready (and, for ours, the first epoch crossed).
        rank_mib: proportional memory (PSS) of the whole, divided by ranks.
        idle_core_share: CPU time over wall time of one rank's processes, without any request.
        loads: by concurrency.
    """

    name: str
    ranks: int
    start_s: float
    rank_mib: float
    idle_core_share: float
    loads: tuple[Load, ...]


@dataclass(frozen=True)
class Running:
    """A system that answers."""

    urls: tuple[str, ...]
    pids: tuple[int, ...]
    start_s: float


@contextlib.asynccontextmanager
async def ours(model: Path, ranks: int, folder: Path, slots: int) -> AsyncIterator[Running]:
    """N engines of this repository, in their first epoch."""
    began = time.perf_counter()
    async with BareCluster(folder=folder, model=model, ranks=ranks, slots=slots) as cluster:
        await cluster.change(cluster.placement())
        engines = list(cluster.engines.values())
        yield Running(
            tuple(engine.url for engine in engines),
            tuple(engine.process.pid for engine in engines),
            time.perf_counter() - began,
        )


@contextlib.asynccontextmanager
async def theirs(model: Path, ranks: int, folder: Path) -> AsyncIterator[Running]:
    """SGLang's own expert parallelism, all ranks in one server."""
    began = time.perf_counter()
    port = free_port()
    cores = sorted(os.sched_getaffinity(0))
    variables = os.environ | {
        "EEP_CPU_SHIMS": "1", "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "none", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(cores[rank % len(cores)]) for rank in range(ranks)),
    }  # fmt: skip
    line = [sys.executable, "-m", "tools.benchmarks.sglang_own", "--model-path", str(model), "--port", str(port)]
    line += ["--host", "127.0.0.1", "--tp", str(ranks), "--ep-size", str(ranks), "--enable-dp-attention"]
    line += ["--dp-size", str(ranks), "--boundary-reduction", "ar", "--device", "cpu", "--dtype", "float32"]
    line += ["--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--disable-cuda-graph"]
    line += ["--mem-fraction-static", "0.3", "--max-total-tokens", "8192", "--disable-overlap-schedule"]
    line += ["--skip-server-warmup"]
    process = _start(line, variables, folder)
    url = f"http://127.0.0.1:{port}"
    try:
        await _answers(url, process, folder)
        yield Running((url,), (process.pid,), time.perf_counter() - began)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def _start(line: list[str], variables: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sglang.log").open("wb") as log:
        return subprocess.Popen(line, env=variables, stdout=log, stderr=log, start_new_session=True)


def _log(folder: Path) -> str:
    return (folder / "sglang.log").read_text(errors="replace")[-2000:]


async def _answers(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    async with asyncio.timeout(_START_S), aiohttp.ClientSession() as session:
        while True:
            if process.poll() is not None:
                raise RuntimeError("SGLang ended: " + _log(folder))
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/model_info") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)


@dataclass
class Subject:
    """A system between its start and its figures."""

    name: str
    ranks: int
    running: Running
    idle: float = 0.0
    bursts: dict[int, list[Load]] = field(default_factory=lambda: {concurrent: [] for concurrent in _CONCURRENT})

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """It runs within, and is stopped outside."""
        self.wake()
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """It runs from now on, to be ended."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in _tree(self.running.pids):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def settle(self, session: aiohttp.ClientSession) -> None:
        """Compilation of kernels, caches, lazily imported modules; then the cost of doing nothing."""
        for url in self.running.urls:
            await _burst(session, [url], concurrent=2, tokens=16)
        await asyncio.sleep(2.0)
        before, since = _cpu_s(self.running.pids), time.perf_counter()
        await asyncio.sleep(_IDLE_S)
        self.idle = (_cpu_s(self.running.pids) - before) / (time.perf_counter() - since) / self.ranks

    async def work(self, session: aiohttp.ClientSession, *, tokens: int) -> None:
        """One burst of each concurrency."""
        await asyncio.sleep(_WAKE_S)
        for concurrent, loads in self.bursts.items():
            loads.append(await _burst(session, self.running.urls, concurrent=concurrent, tokens=tokens))

    def figures(self) -> System:
        """Medians, while it still runs."""
        medians = (sorted(loads, key=lambda load: load.tokens_per_s)[len(loads) // 2] for loads in self.bursts.values())
        memory = _pss_mib(self.running.pids) / self.ranks
        return System(self.name, self.ranks, self.running.start_s, memory, self.idle, tuple(medians))


async def _burst(session: aiohttp.ClientSession, urls: Sequence[str], *, concurrent: int, tokens: int) -> Load:
    began = time.perf_counter()
    answers: list[Answer] = await asyncio.gather(
        *(
            generate(session, urls[index % len(urls)], [*_PROMPT, 400 + index], tokens=tokens)
            for index in range(concurrent)
        )
    )
    wall = time.perf_counter() - began
    failed = [answer.error or f"{len(answer.output)} tokens" for answer in answers if len(answer.output) != tokens]
    if failed:
        raise RuntimeError(f"{len(failed)} of {concurrent} requests failed: {failed[0]}")
    return Load(
        concurrent=concurrent,
        tokens_per_s=concurrent * tokens / wall,
        tpot_ms=statistics.median((a.arrived[-1] - a.arrived[0]) / (tokens - 1) for a in answers) * 1e3,
        ttft_ms=statistics.median(a.arrived[0] - a.started for a in answers) * 1e3,
    )


def _tree(pids: Sequence[int]) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in pids]
    return roots + [child for root in roots for child in root.children(recursive=True)]


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _tree(pids))


def _pss_mib(pids: Sequence[int]) -> float:
    return sum(process.memory_full_info().pss for process in _tree(pids)) / 2**20


async def compare(model: Path, *, counts: Sequence[int], tokens: int, repeats: int) -> list[System]:
    """Both systems at each number of ranks."""
    systems = []
    timeout = aiohttp.ClientTimeout(total=None)
    with tempfile.TemporaryDirectory(prefix="eep-bench-") as name:
        for ranks in counts:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                pair = await _pair(model, ranks, Path(name), session, tokens=tokens, repeats=repeats)
            for system in pair:
                _say(system)
            systems += pair
    return systems


async def _pair(
    model: Path, ranks: int, folder: Path, session: aiohttp.ClientSession, *, tokens: int, repeats: int
) -> list[System]:
    experts = int(json.loads((model / "config.json").read_text())["num_experts"])
    slots = -(-experts // ranks)
    async with contextlib.AsyncExitStack() as stack:
        subjects = []
        for name, start in (
            ("elastic", ours(model, ranks, folder / f"ours-{ranks}", slots)),
            ("sglang", theirs(model, ranks, folder / f"sglang-{ranks}")),
        ):
            subject = Subject(name, ranks, await stack.enter_async_context(start))
            subjects.append(subject)
            stack.callback(subject.wake)
            with subject.awake():
                await subject.settle(session)
        for _ in range(repeats):
            for subject in subjects:
                with subject.awake():
                    await subject.work(session, tokens=tokens)
        return [subject.figures() for subject in subjects]


def _say(system: System) -> None:
    loads = "  ".join(
        f"{load.concurrent}: {load.tokens_per_s:6.1f} tok/s, {load.tpot_ms:6.1f} ms/token" for load in system.loads
    )
    print(
        f"{system.name:8} {system.ranks} ranks  {loads}  idle {system.idle_core_share:.1%} of a core"
        f"  start {system.start_s:.0f} s  {system.rank_mib:.0f} MiB/rank",
        flush=True,
    )


def main(argv: list[str]) -> int:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(prog="tools/bench serving", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--model", type=Path, default=_MODEL)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--tokens", type=int, default=128, help="output tokens of one request")
    parser.add_argument(
        "--repeats", type=int, default=7, help="bursts of each system at each concurrency; the median counts"
    )
    options = parser.parse_args(argv)
    systems = asyncio.run(compare(options.model, counts=options.ranks, tokens=options.tokens, repeats=options.repeats))
    ratios = {}
    for mine, other in zip(systems[::2], systems[1::2], strict=True):
        for left, right in zip(mine.loads, other.loads, strict=True):
            ratios[f"ranks_{mine.ranks}_concurrent_{left.concurrent}"] = left.tokens_per_s / right.tokens_per_s
    for key, ratio in ratios.items():
        print(f"{key}: {ratio:.1f} ×")
    if options.json:
        report = {
            **provenance("tools/bench serving"),
            "model": options.model.name,
            "systems": [asdict(system) for system in systems],
            "speedup": ratios,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0
