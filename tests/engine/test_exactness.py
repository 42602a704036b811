"""Four ranks, one model: every token is the one that the whole model in one process would choose."""

import asyncio
import json
import mmap
import random
import re
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from schemas.placement import EMPTY, Placement
from schemas.vocabulary import IDS_ONLY, Cut
from tests.engine.conftest import SPROUT, running
from tools.cluster.exactness import Reference
from tools.cluster.traffic import generate
from worker.engine.checkpoint import Checkpoint
from worker.engine.slots import SlotLayout

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(420)]

RANKS, SLOTS, TOKENS = 4, 12, 64
VOCABULARY = 2048


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster():
    # prefills of 128 tokens in rounds of 48, so that chunks and rounds are both taken
    async with running(SPROUT, ranks=RANKS, slots=SLOTS, chunked_prefill=128, max_tokens=48) as pair:
        yield pair


@pytest.fixture(scope="module")
def reference():
    return Reference(SPROUT)


def prompts(seed, count):
    """Mixed lengths; some share a prefix, for the radix cache."""
    rng = random.Random(seed)
    common = [rng.randrange(2, VOCABULARY) for _ in range(70)]
    made = []
    for index in range(count):
        own = [rng.randrange(2, VOCABULARY) for _ in range(rng.choice([1, 3, 17, 60, 150, 300]))]
        made.append(common + own if index % 4 == 0 else own)
    return made


def among(ranks, seed, each):
    """(rank, prompt) pairs: ``each`` prompts for every one of ``ranks``."""
    return [(rank, prompt) for rank in ranks for prompt in prompts(seed + rank, each)]


async def ask(cluster, wanted, *, tokens=TOKENS):
    """``wanted``: (rank, prompt) pairs, all at once."""
    live, session = cluster
    answers = await asyncio.gather(
        *(generate(session, live.engines[rank].url, prompt, tokens=tokens) for rank, prompt in wanted)
    )
    assert [answer.error for answer in answers if answer.error] == []
    assert {(len(answer.output), answer.finish) for answer in answers} == {(tokens, "length")}
    return answers


def moved(placement, seed):
    """The same experts in other slots, with other second copies: what a rebalance asks for."""
    rng = np.random.default_rng(seed)
    slots = np.full_like(placement.slots, EMPTY)
    for layer in range(placement.n_layers):
        experts = np.concatenate([rng.permutation(placement.n_experts), rng.permutation(placement.n_experts)])
        for index, expert in enumerate(experts[: RANKS * SLOTS].tolist()):
            rank = next((index + k) % RANKS for k in range(RANKS) if expert not in slots[layer, (index + k) % RANKS])
            free = np.flatnonzero(slots[layer, rank] == EMPTY)
            if free.size:
                slots[layer, rank, free[0]] = expert
    made = Placement(slots=slots, weights=(slots != EMPTY).astype(np.uint16), n_experts=placement.n_experts)
    assert made.missing(range(RANKS)) == []
    return made


async def test_every_token_is_the_references(cluster, reference):
    wanted = [(rank, prompt) for rank in range(RANKS) for prompt in prompts(rank, 16)]
    answers = await ask(cluster, wanted)
    assert len(answers) * TOKENS == 4096
    assert reference.count_wrong(answers) == 0


async def test_ranks_without_work_take_part(cluster, reference):
    answers = await ask(cluster, [(2, prompt) for prompt in prompts(100, 3)])
    answers += await ask(cluster, [(0, [5]), (3, prompts(101, 1)[0])], tokens=20)
    assert reference.count_wrong(answers) == 0


async def test_a_rank_that_nobody_asks_costs_next_to_nothing(cluster):
    import psutil

    live, _ = cluster

    def spent(pid):
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in tree)

    await asyncio.sleep(1.0)
    pids = [engine.process.pid for engine in live.engines.values()]
    before = [spent(pid) for pid in pids]
    await asyncio.sleep(4.0)
    shares = [(spent(pid) - was) / 4.0 for pid, was in zip(pids, before, strict=True)]
    assert max(shares) < 0.05, shares


async def test_who_wants_ids_gets_the_same_ids_and_no_text(cluster):
    live, session = cluster
    plain = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}

    async def events(params):
        body = {"input_ids": [7, 8, 9], "sampling_params": params, "stream": True}
        async with session.post(f"{live.engines[0].url}/generate", json=body) as response:
            lines = [line async for line in response.content]
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]

    short, usual = await asyncio.gather(events(plain | {"custom_params": {IDS_ONLY: True}}), events(plain))
    ids = [[token for event in answer for token in event["output_ids"]] for answer in (short, usual)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 12
    assert all("text" not in event for event in short)
    assert "".join(event["text"] for event in usual)
    assert short[-1]["meta_info"]["finish_reason"] == usual[-1]["meta_info"]["finish_reason"]


async def test_a_slot_with_another_experts_weights_is_caught(cluster, reference):
    """Negative control: the check above would see one wrong expert of 128."""
    live, _ = cluster
    engine = live.engines[1]
    layout = SlotLayout(engine.hello.layers, SLOTS, Checkpoint(SPROUT).shape("float32"))
    with SlotsOf(engine.hello.pid, layout) as memory:
        for layer in range(
            layout.layers
        ):  # the experts that the router likes differ by layer; one slot in each will do
            first, second = layout.blocks(layer, 0)
            other = layout.blocks(layer, 1)
            kept = memory[first].copy(), memory[second].copy()
            memory[first], memory[second] = memory[other[0]], memory[other[1]]
            try:
                answers = await ask(cluster, [(rank, prompt) for rank in range(RANKS) for prompt in prompts(7, 2)])
            finally:
                memory[first], memory[second] = kept
            if reference.count_wrong(answers):
                break
        else:
            pytest.fail("no wrong token although a slot held another expert's weights")
    answers = await ask(cluster, [(rank, prompt) for rank in range(RANKS) for prompt in prompts(8, 1)])
    assert reference.count_wrong(answers) == 0


class SlotsOf:
    """The slot memory of a running engine, writable."""

    def __init__(self, pid, layout):
        self._pid, self._layout = pid, layout

    def __enter__(self):
        for path in Path(f"/proc/{self._pid}/fd").iterdir():
            if str(path.readlink()).startswith("/memfd:eep-slots-"):
                with path.open("r+b") as stream:
                    self._map = mmap.mmap(stream.fileno(), self._layout.nbytes)
                return np.frombuffer(self._map, dtype=np.uint8)
        raise FileNotFoundError(f"no slots in process {self._pid}")

    def __exit__(self, *_):
        return False


async def test_slots_move_under_load_without_a_wrong_token(cluster, reference):
    live, _ = cluster
    load = asyncio.ensure_future(ask(cluster, among(range(RANKS), 30, 3), tokens=200))
    current = live.placement()
    for seed in range(4):
        await asyncio.sleep(0.2)
        target = moved(current, seed)
        # first what fits beside the table in force, then the rest: a live slot is never written
        answers = await live.change(target, cut=Cut.PLANNED)
        if not all(answer.ok for answer in answers.values()):
            assert all("is in the live table" in answer.error for answer in answers.values() if not answer.ok)
            answers = await live.change(target, cut=Cut.ABORT)
        assert all(answer.ok for answer in answers.values())
    assert reference.count_wrong(await load) == 0


async def test_a_step_called_off_at_any_layer_is_run_again(cluster, reference):
    live, _ = cluster
    layers = next(iter(live.engines.values())).hello.layers
    wanted = set(range(layers))
    load = asyncio.ensure_future(ask(cluster, among(range(RANKS), 50, 4), tokens=400))
    rng = random.Random(3)
    placement = live.placement()
    rounds = 0
    while not load.done() and rounds < 150:
        await asyncio.sleep(rng.uniform(0.0, 0.03))
        await live.change(placement, cut=Cut.ABORT)
        rounds += 1
    answers = await load
    hit = {
        int(layer)
        for engine in live.engines.values()
        for layer in re.findall(r"step abandoned at layer (-?\d+)", engine.process.log_text())
    }
    assert hit >= wanted, f"{rounds} epochs called steps off at layers {sorted(hit)} only"
    assert reference.count_wrong(answers) == 0


async def test_a_killed_rank_is_survived_and_comes_back(cluster, reference):
    live, session = cluster
    whole = live.placement()
    load = asyncio.ensure_future(ask(cluster, among((0, 1, 3), 70, 4), tokens=300))
    doomed = asyncio.ensure_future(generate(session, live.engines[2].url, [9, 8, 7], tokens=300))
    await asyncio.sleep(0.5)
    assert not load.done()
    live.kill(2)
    answers = await live.change(live.placement([0, 1, 3]), cut=Cut.ABORT)
    assert all(answer.ok and answer.missing == () for answer in answers.values())
    survivors = await load
    assert reference.count_wrong(survivors) == 0
    assert (await doomed).finish == ""

    await live.revive(2)
    load = asyncio.ensure_future(ask(cluster, among((0, 1, 3), 80, 3), tokens=250))
    await asyncio.sleep(0.3)
    answers = await live.change(whole, cut=Cut.ABORT)
    assert all(answer.ok for answer in answers.values())
    back = await ask(cluster, [(2, prompt) for prompt in prompts(90, 4)])
    assert reference.count_wrong([*(await load), *back]) == 0
