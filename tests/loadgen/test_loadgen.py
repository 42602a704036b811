import asyncio
from itertools import islice

import pytest

from tests.standin.rank import Rank, answer_of
from tools.loadgen import Answer, Ask, Load, Outcome, Target, Workload, compare, teacher_forced, throughput, timing
from tools.loadgen.timing import longest_gap_around
from tools.models.random_moe import SHIPPED


@pytest.fixture(scope="module")
def workload():
    return Workload(model=SHIPPED, seed=4, prompt_tokens=(3, 30), answer_tokens=(5, 12))


def _reference(asks):
    return {ask.id: answer_of(ask.prompt, ask.max_new_tokens) for ask in asks}


@pytest.mark.parametrize("incremental", [True, False])
async def test_every_token_of_every_stream_is_kept(workload, incremental):
    asks = list(islice(workload, 9))
    async with Rank(incremental=incremental) as rank:
        answers = await Load(Target((rank.url,)), asks, concurrency=4).run()
    verdict = compare(answers, _reference(asks))
    assert verdict.good, verdict
    assert verdict.tokens == sum(ask.max_new_tokens for ask in asks)
    assert all(len(answer.arrived_ns) == len(answer.tokens) for answer in answers)


async def test_a_stream_that_just_ends_is_not_complete(workload):
    async with Rank(cut_at=3) as rank:
        answers = await Load(Target((rank.url,)), islice(workload, 2), concurrency=2).run()
    assert [answer.outcome for answer in answers] == [Outcome.CUT] * 2
    assert compare(answers, _reference(answer.ask for answer in answers)).failed == 2


async def test_an_error_inside_the_stream_is_an_error(workload):
    async with Rank(error_at=2) as rank:
        (answer,) = await Load(Target((rank.url,)), islice(workload, 1), concurrency=1).run()
    assert answer.outcome is Outcome.ERROR
    assert "scheduler died" in answer.error


async def test_the_next_address_is_tried_when_told_to(workload):
    async with Rank(refuse=(503, "busy")) as busy, Rank() as rank:
        target = Target((busy.url, rank.url), tries=2, retry_wait_s=0.01)
        (answer,) = await Load(target, islice(workload, 1), concurrency=1).run()
    assert answer.outcome is Outcome.COMPLETE
    assert answer.tries == 2


async def test_stop_lets_what_runs_finish(workload):
    async with Rank(pause_s=0.001) as rank:
        load = Load(Target((rank.url,)), workload, concurrency=3)
        load.on_token = lambda _: load.stop()
        answers = await asyncio.wait_for(load.run(), timeout=20)
    assert len(answers) == 3
    assert all(answer.outcome is Outcome.COMPLETE for answer in answers)


def test_the_same_seed_asks_the_same(workload):
    again = Workload(model=SHIPPED, seed=4, prompt_tokens=(3, 30), answer_tokens=(5, 12))
    assert list(islice(again, 5)) == list(islice(workload, 5))
    other = Workload(model=SHIPPED, seed=5, prompt_tokens=(3, 30), answer_tokens=(5, 12))
    assert list(islice(other, 5)) != list(islice(workload, 5))


def _answer(number, arrived, tokens=None):
    ask = Ask(id=number, prompt=(1, 2), max_new_tokens=len(arrived))
    tokens = tokens or list(range(len(arrived)))
    return Answer(ask=ask, outcome=Outcome.COMPLETE, tokens=tokens, arrived_ns=arrived, sent_ns=0)


MS = 1_000_000


def test_gaps_and_throughput_are_what_the_arrivals_say():
    answers = [_answer(0, [10 * MS, 20 * MS, 90 * MS]), _answer(1, [15 * MS, 25 * MS])]
    seen = timing(answers)
    assert (seen.tokens, seen.longest_gap, seen.median_step) == (5, 70.0, 10.0)
    assert seen.tokens_per_s == pytest.approx(5 / 0.09)
    windows = throughput(answers, window_s=0.03, since_ns=0, until_ns=90 * MS)
    assert [rate for _, rate in windows] == [pytest.approx(4 / 0.03), 0.0, pytest.approx(1 / 0.03)]
    assert longest_gap_around(answers, 50 * MS) == 70.0


def test_a_wrong_token_and_a_short_answer_are_found():
    verdict = compare([_answer(0, [1, 2, 3], [4, 5, 6])], {0: [4, 9, 6]})
    assert (verdict.wrong, verdict.good) == (1, False)
    assert "token 1: 5, the reference has 9" in verdict.first_wrong
    short = _answer(1, [1, 2])
    short.ask = Ask(id=1, prompt=(1,), max_new_tokens=3)
    assert compare([short], {1: [0, 1, 2]}).short == 1


def test_nothing_checked_is_not_good():
    assert not compare([], {}).good


def test_teacher_forcing_accepts_the_model_and_catches_one_changed_token(workload):
    from tools.models.torch_modules import Qwen3MoeForCausalLM, torch

    model = Qwen3MoeForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    ask = workload.ask(0)
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ask.prompt]), max_new_tokens=ask.max_new_tokens, do_sample=False, eos_token_id=None
        )
    tokens = out[0, len(ask.prompt) :].tolist()
    right = Answer(ask=ask, outcome=Outcome.COMPLETE, tokens=tokens, arrived_ns=list(range(len(tokens))))
    assert teacher_forced([right], SHIPPED).good
    tokens[3] = tokens[3] + 1
    assert teacher_forced([right], SHIPPED).wrong >= 1
