"""Other families and shapes: shared experts, experts not divisible by ranks, a death and a return among three ranks."""

import asyncio
import random

import pytest
import pytest_asyncio
import torch

from schemas.vocabulary import Cut
from tests.engine.conftest import running
from tools.cluster.exactness import Reference
from tools.cluster.traffic import generate

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(420)]

RANKS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tools.models.random_moe import PRESETS, make

    return make(tmp_path_factory.mktemp("model"), PRESETS["shared-odd"], seed=11)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(model):
    # ten experts over three ranks of seven slots; overlap scheduling as beside a GPU
    async with running(model, ranks=RANKS, slots=7, overlap=True) as pair:
        yield pair


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model, dtype=torch.float32)


def load(cluster, ranks, *, each, tokens, seed):
    live, session = cluster
    rng = random.Random(seed)
    return asyncio.gather(
        *(
            generate(
                session,
                live.engines[rank].url,
                [rng.randrange(2, 2048) for _ in range(rng.randrange(1, 90))],
                tokens=tokens,
            )
            for rank in ranks
            for _ in range(each)
        )
    )


def check(answers, reference, tokens):
    assert {(answer.error, len(answer.output), answer.finish) for answer in answers} == {("", tokens, "length")}
    assert reference.count_wrong(answers) == 0


async def test_shared_experts_and_an_odd_number_of_experts(cluster, reference):
    check(await load(cluster, range(RANKS), each=4, tokens=48, seed=1), reference, 48)


async def test_a_killed_rank_is_survived_and_comes_back(cluster, reference):
    live, session = cluster
    whole = live.placement()
    survivors = asyncio.ensure_future(load(cluster, (0, 2), each=3, tokens=300, seed=2))
    doomed = asyncio.ensure_future(generate(session, live.engines[1].url, [9, 8, 7], tokens=300))
    await asyncio.sleep(0.5)
    assert not survivors.done()
    live.kill(1)
    answers = await live.change(live.placement([0, 2]), cut=Cut.ABORT)
    assert all(answer.ok and answer.missing == () for answer in answers.values())
    check(await survivors, reference, 300)
    assert (await doomed).finish == ""

    await live.revive(1)
    under_way = asyncio.ensure_future(load(cluster, (0, 2), each=2, tokens=200, seed=3))
    await asyncio.sleep(0.2)
    answers = await live.change(whole, cut=Cut.ABORT)
    assert all(answer.ok for answer in answers.values())
    back = await load(cluster, (1,), each=3, tokens=40, seed=4)
    check(await under_way, reference, 200)
    check(back, reference, 40)
