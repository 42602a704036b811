"""Engines are forked from a process that has imported everything; what it forks is what a start would have made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from schemas.config import Config, InstanceConfig, WorkerConfig
from schemas.messages import Hello, Ready
from tools.mainjob.instance import SHIPPED_MODEL
from worker.agent.engine import Engine
from worker.agent.events import EngineEnded, Heard
from worker.engine.template.client import Template, TemplateError

SPAWNS = """
import multiprocessing, os, sys, time
from worker.engine.template import blanks

def tell(line, code):
    line.send({
        "parent": os.getppid(),
        "is child": multiprocessing.parent_process() is not None,
        "variable": os.environ.get("LATER"),
        "before": hasattr(os, "before"),
        "after": hasattr(os, "after"),
    })
    sys.exit(code)

if __name__ == "__main__":
    import json
    os.before = True
    blanks.fork(int(sys.argv[1]))
    os.after = True
    os.environ["LATER"] = "set"
    del os.environ["EARLIER"]
    multiprocessing.set_start_method("spawn", force=True)
    told = []
    for code in (3, 4):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=tell, args=(theirs, code))
        process.start()
        theirs.close()
        told.append(ours.recv())
        process.join(60)
        told[-1] |= {"code": process.exitcode, "parent": told[-1]["parent"] == os.getpid()}
    print(json.dumps(told), flush=True)
    if len(sys.argv) > 2:
        time.sleep(600)
"""
"""Prints what two spawned processes found, of which as many as said are made of blanks."""
LONG_S = 120.0
"""For an engine to start beside other work."""


@pytest.fixture
def spawns(tmp_path):
    program = tmp_path / "spawns.py"
    program.write_text(SPAWNS)

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, str(program), *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "EARLIER": "set"},
            start_new_session=True,
        )

    return start


def test_a_spawned_process_is_made_of_a_blank_and_finds_what_it_would_have_found(spawns):
    process = spawns("1")
    out, _ = process.communicate(timeout=60)
    woken, spawned = json.loads(out)
    assert woken.pop("before")
    assert not spawned.pop("before")
    assert woken.pop("code") == 3
    assert spawned.pop("code") == 4
    assert woken == spawned
    assert woken["parent"]
    assert woken["is child"]
    assert woken["variable"] == "set"
    assert not woken["after"]


def test_blanks_that_nobody_woke_end_with_their_process(spawns):
    process = spawns("3", "stay")
    process.stdout.readline()
    children = psutil.Process(process.pid).children()
    process.kill()
    process.communicate(timeout=10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert children


@contextlib.asynccontextmanager
async def engine_of(folder):
    """An agent's engine host, and the queue of what it hears."""
    config = Config(
        instance=InstanceConfig(name="demo", model=str(SHIPPED_MODEL), max_ranks=8, slots_per_rank=32),
        worker=WorkerConfig(host="localhost", device="cpu"),
    )
    engine, heard = Engine(config=config, rank=0, folder=folder / "rank-0"), asyncio.Queue()
    await engine.open(heard.put_nowait)
    try:
        yield engine, heard
    finally:
        await engine.close()


async def until(heard, kind):
    """The next event, or message of the engine, of a kind."""
    async with asyncio.timeout(LONG_S):
        while True:
            event = await heard.get()
            found = event.message if isinstance(event, Heard) else event
            if isinstance(found, kind):
                return found


def priority(session):
    """Of a session among others, empty where the kernel does not schedule them as groups."""
    try:
        return Path(f"/proc/{session}/autogroup").read_text().split()[-1]
    except (OSError, IndexError):
        return ""


@pytest.fixture
def running():
    """Looks for processes that the test has started, and those that they have."""
    before = set(psutil.Process().children(recursive=True))

    def look():
        started = set(psutil.Process().children(recursive=True)) - before
        return [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    return look


async def test_an_agents_engines_come_from_one_template(tmp_path, running):
    async with engine_of(tmp_path) as (engine, heard):
        times = []
        for incarnation in (1, 2):
            began = time.monotonic()
            await engine.start(incarnation)
            hello = await until(heard, Hello)
            await until(heard, Ready)
            times.append(time.monotonic() - began)
            scheduler = psutil.Process(hello.pid)
            server, template = scheduler.parent(), scheduler.parent().parent()
            assert (scheduler.name(), server.name()) == ("sglang::scheduler", "sglang::server")
            assert "worker.engine.template" in template.cmdline()
            assert template.parent().pid == os.getpid()
            async with asyncio.timeout(10.0):  # it started behind others and catches up
                while priority(server.pid) not in ("", "0"):
                    await asyncio.sleep(0.05)
            assert os.getpgid(scheduler.pid) == server.pid == os.getsid(server.pid)
            if incarnation == 1:
                first = template.pid
                scheduler.kill()
                await until(heard, EngineEnded)
        assert template.pid == first
        assert times[1] < times[0]  # the first one waited for the imports

        template.kill()  # whatever ends it, its engine ends with it, and the next one has another
        ended = await until(heard, EngineEnded)
        assert ended.incarnation == 2
        await engine.start(3)
        assert psutil.Process((await until(heard, Hello)).pid).parent().parent().pid not in (first, os.getpid())
    assert not running()


async def test_an_engine_that_is_given_up_while_its_template_imports_leaves_nothing(tmp_path, running):
    async with engine_of(tmp_path) as (engine, heard):
        await engine.start(1)
        async with asyncio.timeout(10.0):
            while not running():
                await asyncio.sleep(0.01)
        await engine.end(fence=False)
        assert not running()
        await engine.start(2)
        assert (await until(heard, Hello)).incarnation == 2


async def test_a_template_that_cannot_import_says_where_it_wrote_why(tmp_path):
    variables = {name: value for name, value in os.environ.items() if name != "EEP_CPU_SHIMS"}
    (tmp_path / "sglang.py").write_text("raise ImportError('this SGLang is broken')")
    template = Template({**variables, "PYTHONPATH": str(tmp_path)}, tmp_path / "template.log")
    with pytest.raises(TemplateError, match=str(tmp_path / "template.log")):
        await asyncio.wait_for(template.fork([], tmp_path / "engine.log"), LONG_S)
    assert "this SGLang is broken" in (tmp_path / "template.log").read_text()
    template.end()
