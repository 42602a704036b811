"""Real SGLang servers, one killed in the middle of its streams: the tokens are those of an undisturbed run."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import aiohttp
import psutil
import pytest
from msgspec import structs

from tools.loadgen import Load, Outcome, Target, Workload, compare
from tools.models.random_moe import SHIPPED

pytestmark = pytest.mark.engine
ENVIRONMENT = {
    "EEP_CPU_SHIMS": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_PLUGINS": "eep",  # without settings of a rank it only adapts SGLang to the CPU
    "SGLANG_CPU_OMP_THREADS_BIND": "0",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ARGUMENTS = (
    "--model-path", str(SHIPPED), "--host", "127.0.0.1", "--tp", "1", "--dtype", "float32", "--device", "cpu",
    "--max-total-tokens", "4096", "--mem-fraction-static", "0.3", "--attention-backend", "torch_native",
    "--sampling-backend", "pytorch", "--disable-cuda-graph", "--skip-server-warmup", "--enable-deterministic-inference",
)  # fmt: skip


class RealRank:
    """Has a ``url`` like the stand-in."""

    def __init__(self, folder, name):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sglang.launch_server", *ARGUMENTS, "--port", str(port)],
                env=os.environ | ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill_scheduler(self):
        """The process that holds the model; the HTTP server lives on for seconds and ends its streams with 200."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if any("scheduler" in word for word in child.cmdline()):
                child.kill()
                return
        raise AssertionError("no scheduler process")

    def end(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


@contextmanager
def started(folder):
    ranks = []
    try:
        ranks.extend(RealRank(folder, name) for name in ("victim", "survivor"))
        yield ranks
    finally:
        for rank in ranks:
            rank.end()


async def ready(rank):
    async with aiohttp.ClientSession() as session, asyncio.timeout(240):
        while True:
            assert rank.process.poll() is None, rank.log.read_text()[-3000:]
            try:
                async with session.get(f"{rank.url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.25)


def asks():
    """Two greedy requests and the same two drawn from a seed."""
    greedy = Workload(model=SHIPPED, seed=9, answer_tokens=(120, 120))
    drawn = Workload(model=SHIPPED, seed=9, answer_tokens=(120, 120), temperature=0.8)
    found = [workload.ask(number) for workload in (greedy, drawn) for number in (0, 1)]
    return [structs.replace(ask, id=number) for number, ask in enumerate(found)]


async def test_streams_of_a_killed_server_go_on_at_another_token_for_token(gateway, tmp_path):
    with started(tmp_path) as (victim, survivor):
        await asyncio.gather(ready(victim), ready(survivor))
        async with gateway(survivor, seeded_ranks=True) as client:
            undisturbed = await Load(Target((client.url,)), asks(), concurrency=1).run()
        assert [answer.outcome for answer in undisturbed] == [Outcome.COMPLETE] * 4, survivor.log.read_text()[-3000:]
        reference = {answer.ask.id: answer.tokens for answer in undisturbed}
        assert reference[0] != reference[2], "sampling changes nothing: the seeds prove nothing"
        async with gateway(victim, survivor, serving=[victim], seeded_ranks=True, stall_s=30.0) as client:
            load = Load(Target((client.url,)), asks(), concurrency=4)

            def kill_once_all_run(_):
                if len(load.answers) == 4 and min(len(answer.tokens) for answer in load.answers) >= 20:
                    load.on_token = None
                    client.serve(victim, survivor)  # the epoch still has both: the cut stream itself must tell
                    victim.kill_scheduler()

            load.on_token = kill_once_all_run
            answers = await load.run()
        verdict = compare(answers, reference)
        assert verdict.good, verdict
        assert [answer.outcome for answer in answers] == [Outcome.COMPLETE] * 4
        assert [answer.ranks for answer in answers] == [[0, 1]] * 4
        assert all(answer.resumed == 1 and answer.exact for answer in answers)
        assert {line["ending"] for line in client.ended()} == {"completed"}
