"""What clients see when ranks fail, against real servers that fail on demand."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from tokenizers import Tokenizer

from controlplane.gateway.generation import Generation
from tests.gateway.conftest import PROMPT
from tests.standin.rank import Rank, answer_of
from tools.models.random_moe import SHIPPED

TOKENIZER = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
EXPECTED = answer_of(PROMPT, 20)
BODY = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}}


async def start(stack, *faults):
    return [await stack.enter_async_context(Rank(**fault)) for fault in faults]


async def test_an_answer_without_faults_is_the_ranks_own(gateway):
    async with Rank() as rank, gateway(rank) as client:
        status, headers, body = await client.generate()
        assert (status, body["output_ids"]) == (200, EXPECTED)
        assert body["text"] == TOKENIZER.decode(EXPECTED)
        assert body["meta_info"]["finish_reason"] == {"type": "length", "length": 20}
        assert (headers["EEP-Resumed"], headers["EEP-Resume-Exact"]) == ("0", "true")
        (line,) = client.ended()
        assert (line["ending"], line["resumed"], line["completion_tokens"]) == ("completed", 0, 20)


async def test_an_answer_made_without_some_experts_says_so_in_every_dialect(gateway):
    async with Rank() as rank, gateway(rank) as client:
        client.serve(rank, missing=3)
        _, headers, body = await client.generate()
        assert (headers["EEP-Missing-Experts"], body["meta_info"]["eep"]["missing_experts"]) == ("3", 3)
        events, _ = await client.events("/v1/completions", {"prompt": PROMPT, "max_tokens": 8, "temperature": 0})
        assert [event["eep"]["missing_experts"] for event in events if "eep" in event] == [3]
        client.serve(rank)
        _, headers, body = await client.generate()
        assert (headers["EEP-Missing-Experts"], "missing_experts" in body["meta_info"]["eep"]) == ("0", False)
        assert [line["missing_experts"] for line in client.ended()] == [3, 3, 0]
        assert client.metric("eep_gateway_best_effort_total") == 2


@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize("cut_at", [4, 7, 19])
async def test_a_stream_that_just_ends_goes_on_elsewhere_token_for_token(gateway, cut_at, incremental):
    async with AsyncExitStack() as stack:
        ranks = await start(stack, {"cut_at": cut_at, "incremental": incremental}, {"incremental": incremental})
        async with gateway(*ranks, serving=ranks[:1]) as client:

            def both(_):
                client.serve(*ranks)

            events, ended = await client.events("/generate", BODY, on_event=both, **{"EEP-Stream": "incremental"})
            tokens = [token for event in events for token in event["output_ids"]]
            assert (tokens, ended) == (EXPECTED, True)
            assert "".join(event["text"] for event in events) == TOKENIZER.decode(EXPECTED)
            assert events[-1]["meta_info"]["eep"] == {"resumed": 1, "exact": True, "ranks": [0, 1]}
            assert ranks[1].bodies[0]["input_ids"] == PROMPT + EXPECTED[:cut_at]
            assert client.ended()[0]["resumed"] == 1
            assert client.metric("eep_gateway_resumes_total") == 1
            assert client.metric("eep_gateway_stall_seconds_count") == 1


async def test_a_silent_rank_that_leaves_the_epoch_loses_its_requests_at_once(gateway):
    async with AsyncExitStack() as stack:
        hung, sound = await start(stack, {"hang_at": 5}, {})
        async with gateway(hung, sound, serving=[hung], stall_s=60.0) as client:
            answer = asyncio.create_task(client.generate())
            await client.until(lambda: hung.bodies and client.service.ranks.carriers)
            await asyncio.sleep(0.1)
            client.serve(sound)
            _, _, body = await asyncio.wait_for(answer, timeout=5)
            assert body["output_ids"] == EXPECTED
            await client.until(lambda: hung.gone == 1)


async def test_a_rank_that_is_silent_while_others_speak_loses_its_requests(gateway):
    async with AsyncExitStack() as stack:
        hung, sound = await start(stack, {"hang_at": 5}, {"pause_s": 0.02})
        async with gateway(hung, sound, serving=[hung]) as client:
            stuck = asyncio.create_task(client.generate())
            await client.until(lambda: hung.bodies)
            client.serve(hung, sound)
            moving = asyncio.create_task(client.generate(60, prompt=[5, 6, 7]))
            await client.until(lambda: sound.bodies)
            _, _, body = await asyncio.wait_for(stuck, timeout=5)
            assert body["output_ids"] == EXPECTED
            assert (await moving)[2]["output_ids"] == answer_of([5, 6, 7], 60)


async def test_when_all_are_silent_nobody_is_blamed(gateway):
    """Lockstep stops every rank together while an epoch changes: the answer waits and goes on."""
    async with Rank(hang_at=5) as first, Rank() as idle, gateway(first, idle, serving=[first]) as client:
        answer = asyncio.create_task(client.generate())
        await client.until(lambda: first.bodies)
        client.serve(first, idle)
        await asyncio.sleep(1.0)
        assert not answer.done()
        assert not idle.bodies
        answer.cancel()


async def test_a_connection_that_saw_an_answers_end_is_used_again(gateway):
    async with Rank(end_mark_after_s=0.02) as rank, gateway(rank) as client:
        for _ in range(3):
            status, _, answer = await client.generate(5)
            assert (status, answer["output_ids"]) == (200, answer_of(PROMPT, 5))
            await client.until(lambda: client.service.ranks._connections._idle[rank.url])
        assert len(rank.clients) == 1


async def test_a_rank_that_breaks_off_behind_the_finish_reason_is_not_held_to_have_failed(gateway):
    async with Rank(end_mark_after_s=0.02, breaks_after_finish=True) as rank, gateway(rank) as client:
        for _ in range(2):
            status, _, answer = await client.generate(5)
            assert (status, answer["output_ids"]) == (200, answer_of(PROMPT, 5))
            await client.until(lambda: rank.gone)
            await asyncio.sleep(0.05)
        assert not client.service.ranks._router._suspects
        assert all(line["retried"] == 0 for line in client.ended())


async def test_a_refused_connection_costs_nothing(gateway):
    gone = Rank()
    async with gone:
        pass
    async with Rank() as sound, gateway(gone, sound) as client:
        for _ in range(4):
            status, _, body = await client.generate()
            assert (status, body["output_ids"]) == (200, EXPECTED)
        assert all(line["ending"] == "completed" for line in client.ended())


async def test_a_rank_that_the_epoch_has_but_nobody_reaches_is_503(gateway):
    gone = Rank()
    async with gone:
        pass
    async with gateway(gone, no_rank_wait_s=0.2) as client:
        status, headers, body = await client.generate()
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "no_rank", "1")


async def test_a_poisonous_request_is_given_up_and_the_rest_of_the_cluster_survives(gateway):
    async with AsyncExitStack() as stack:
        deadly = await start(stack, *({"cut_at": 0} for _ in range(4)))
        async with gateway(*deadly, crash_limit=2) as client:
            status, _, body = await client.generate()
            assert (status, body["error"]["code"]) == (502, "request_given_up")
            assert sum(len(rank.bodies) for rank in deadly) == 2
            (line,) = client.ended()
            assert (line["ending"], line["error"]["code"]) == ("failed", "request_given_up")


async def test_a_request_under_suspicion_goes_to_a_rank_that_spoke_since(gateway):
    """Also to a busy one: of the idle one nothing is known."""
    async with AsyncExitStack() as stack:
        deadly, busy, idle = await start(stack, {"cut_at": 0}, {"pause_s": 0.02}, {})
        async with gateway(deadly, busy, idle, serving=[busy]) as client:
            other = asyncio.create_task(client.generate(80, prompt=[1, 2, 3]))
            await client.until(lambda: busy.bodies)
            client.serve(deadly, busy)
            answer = asyncio.create_task(client.generate())
            await client.until(lambda: deadly.bodies)
            client.serve(busy, idle)
            assert (await answer)[2]["output_ids"] == EXPECTED
            assert (len(busy.bodies), len(idle.bodies)) == (2, 0)
            assert (await other)[2]["output_ids"] == answer_of([1, 2, 3], 80)


async def test_two_requests_under_suspicion_do_not_share_a_rank(gateway):
    """One of them may have killed the rank they were on; the other must not be there when it kills the next."""
    async with AsyncExitStack() as stack:
        deadly, *sound = await start(stack, {"cut_at": 0}, {"pause_s": 0.05}, {"pause_s": 0.05})
        async with gateway(deadly, *sound, serving=[deadly]) as client:
            answers = [asyncio.create_task(client.generate()) for _ in range(2)]
            await client.until(lambda: len(deadly.bodies) == 2)
            client.serve(*sound)
            assert [body["output_ids"] for _, _, body in await asyncio.gather(*answers)] == [EXPECTED] * 2
            assert [len(rank.bodies) for rank in sound] == [1, 1]


async def test_a_fault_that_ranks_themselves_report_is_retried_elsewhere(gateway):
    async with AsyncExitStack() as stack:
        broken, sound = await start(stack, {"error_at": 3}, {})
        async with gateway(broken, sound, serving=[broken]) as client:
            answer = asyncio.create_task(client.generate())
            await client.until(lambda: broken.bodies)
            client.serve(broken, sound)
            assert (await answer)[2]["output_ids"] == EXPECTED


async def test_what_the_rank_calls_invalid_the_client_hears_once(gateway):
    async with Rank(refuse=(400, "input is too long")) as rank, gateway(rank) as client:
        status, _, body = await client.generate()
        assert (status, body["error"]["message"]) == (400, "input is too long")
        assert len(rank.bodies) == 1


async def test_a_request_waits_for_a_rank_and_says_when_none_came(gateway):
    async with Rank() as rank, gateway(rank, serving=[]) as client:
        answer = asyncio.create_task(client.generate())
        await asyncio.sleep(0.1)
        client.serve(rank)
        assert (await answer)[0] == 200
        client.serve()
        status, headers, body = await client.generate()
        assert (status, body["error"]["code"]) == (503, "no_rank")
        assert int(headers["Retry-After"]) >= 1


async def test_a_resumed_answer_waits_longer_than_a_new_request(gateway):
    async with AsyncExitStack() as stack:
        first, second = await start(stack, {"cut_at": 6}, {})
        async with gateway(first, second, serving=[first], no_rank_wait_s=0.1) as client:
            answer = asyncio.create_task(client.generate())
            await client.until(lambda: first.bodies)
            client.serve()
            await asyncio.sleep(0.4)
            client.serve(second)
            assert (await answer)[2]["output_ids"] == EXPECTED


async def test_a_draining_rank_hands_over_what_runs_and_is_told_to_stop(gateway):
    async with AsyncExitStack() as stack:
        leaving, staying = await start(stack, {"pause_s": 0.05}, {})
        async with gateway(leaving, staying, serving=[leaving], handover_after_s=0.1) as client:
            answer = asyncio.create_task(client.generate(60))
            await client.until(lambda: leaving.bodies)
            client.serve(leaving, staying, draining=[leaving])
            _, _, body = await answer
            assert body["output_ids"] == answer_of(PROMPT, 60)
            assert body["meta_info"]["eep"]["ranks"] == [0, 1]
            await client.until(lambda: leaving.aborted == [leaving.bodies[0]["rid"]])


async def test_a_rank_that_leaves_by_plan_is_no_strike_against_its_requests(gateway):
    async with AsyncExitStack() as stack:
        first, second, third = await start(stack, {"hang_at": 0}, {"hang_at": 0}, {})
        async with gateway(first, second, third, serving=[first], crash_limit=1, handover_after_s=30.0) as client:
            answer = asyncio.create_task(client.generate())
            for leaving, staying in ((first, second), (second, third)):
                await client.until(lambda leaving=leaving: leaving.bodies)
                client.serve(leaving, staying, draining=[leaving])
                client.serve(staying)
            assert (await answer)[2]["output_ids"] == EXPECTED


async def test_a_draining_rank_finishes_what_is_short(gateway):
    async with AsyncExitStack() as stack:
        leaving, staying = await start(stack, {"pause_s": 0.01}, {})
        async with gateway(leaving, staying, serving=[leaving], handover_after_s=30.0) as client:
            answer = asyncio.create_task(client.generate())
            await client.until(lambda: leaving.bodies)
            client.serve(leaving, staying, draining=[leaving])
            assert (await answer)[2]["meta_info"]["eep"]["ranks"] == [0]


async def test_a_client_that_leaves_frees_its_rank(gateway):
    async with Rank(hang_at=3) as rank, gateway(rank) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.events("/generate", BODY)
        await client.until(lambda: rank.aborted == [rank.bodies[0]["rid"]])
        await client.until(lambda: client.audit.exists() and client.ended())
        assert client.ended()[0]["ending"] == "abandoned"
        assert client.service.admission.running == 0
        assert client.metric("eep_gateway_inflight_requests", rank="0") == 0


async def test_a_deadline_before_the_first_token_has_a_status_of_its_own(gateway):
    async with Rank(hang_at=0) as rank, gateway(rank) as client:
        status, body = await client.events("/generate", BODY, **{"EEP-Timeout": "0.2"})
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_deadline_inside_a_stream_is_said_in_the_stream(gateway):
    async with Rank(hang_at=3) as rank, gateway(rank) as client:
        events, ended = await client.events("/generate", BODY, **{"EEP-Timeout": "0.3", "EEP-Stream": "incremental"})
        assert [token for event in events[:-1] for token in event["output_ids"]] == EXPECTED[:3]
        assert events[-1]["error"]["code"] == "deadline_exceeded"
        assert ended


async def test_a_full_queue_answers_429_and_a_free_one_again_200(gateway):
    async with Rank(hang_at=2) as rank, gateway(rank, max_running=1, max_queued=1) as client:
        first = asyncio.create_task(client.generate())
        await client.until(lambda: client.service.admission.running == 1)
        second = asyncio.create_task(client.generate())
        await client.until(lambda: client.service.admission.queued == 1)
        status, headers, body = await client.generate()
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert headers["Retry-After"] == "1"
        rank.hang_at = None
        first.cancel()
        assert (await second)[0] == 200


async def test_a_closing_gateway_lets_running_answers_end_and_takes_no_new_ones(gateway):
    async with Rank(pause_s=0.02) as rank, gateway(rank) as client:
        running = asyncio.create_task(client.generate())
        await client.until(lambda: client.service.admission.running == 1)
        closing = asyncio.create_task(client.service.admission.close(wait_s=5))
        await asyncio.sleep(0)
        assert (await client.generate())[0] == 503
        async with client.http.get(client.url + "/ready") as response:
            assert response.status == 503
        assert (await running)[2]["output_ids"] == EXPECTED
        await asyncio.wait_for(closing, timeout=1)


async def test_many_streams_through_many_faults_are_all_exact_and_end_once(gateway):
    async with AsyncExitStack() as stack:
        ranks = await start(stack, {"pause_s": 0.002}, {"pause_s": 0.002}, {"pause_s": 0.002}, {"pause_s": 0.002})
        async with gateway(*ranks) as client:
            prompts = [[20 + number, 30 + number] for number in range(24)]
            asks = [asyncio.create_task(client.generate(60, prompt=prompt)) for prompt in prompts]
            for victim in (0, 2):
                await client.until(lambda victim=victim: client.in_the_middle_on(victim))
                ranks[victim].cut_at = 0
                client.serve(*(rank for rank in ranks if rank.cut_at is None))
            bodies = [(await ask)[2] for ask in asks]
            assert [body["output_ids"] for body in bodies] == [answer_of(prompt, 60) for prompt in prompts]
            assert sum(body["meta_info"]["eep"]["resumed"] for body in bodies) > 0
            assert sorted(line["id"] for line in client.ended()) == sorted(
                line["id"] for line in client.audited() if line["event"] == "accepted"
            )
            assert {line["ending"] for line in client.ended()} == {"completed"}


async def test_a_fault_of_the_gateways_own_ends_the_request_at_once(gateway, monkeypatch):
    def fails(*_):
        raise KeyError("a mistake")

    async with Rank() as rank, gateway(rank) as client:
        monkeypatch.setattr(Generation, "_take", fails)
        async with asyncio.timeout(10):
            status, _, body = await client.generate()
        assert (status, body["error"]["code"]) == (500, "internal_error")
        monkeypatch.undo()
        assert (await client.generate())[2]["output_ids"] == EXPECTED
