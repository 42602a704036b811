"""OpenAI's own client finds nothing amiss."""

import openai
import pytest

from tests.standin.rank import Rank, answer_of


@pytest.fixture
async def served(gateway):
    async with Rank() as rank, gateway(rank) as client:
        client.rank = rank
        async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as sdk:
            yield client, sdk


async def test_chat_streams_to_its_end_with_usage(served, model):
    client, sdk = served
    messages = [{"role": "user", "content": "What is heapq?"}]
    stream = await sdk.chat.completions.create(
        model="sprout", messages=messages, max_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == model.tokenizer.decode(answer_of(client.rank.bodies[0]["input_ids"], 12))
    assert chunks[-1].usage.completion_tokens == 12
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"


async def test_completions_and_models(served, model):
    _, sdk = served
    made = await sdk.completions.create(model="sprout", prompt=[11, 12], max_tokens=5, temperature=0, n=2, logprobs=1)
    expected = model.tokenizer.decode(answer_of([11, 12], 5))
    assert [choice.text for choice in made.choices] == [expected] * 2
    assert made.choices[0].logprobs.token_logprobs == [-0.5] * 5
    assert [each.id async for each in sdk.models.list()] == ["sprout"]


async def test_errors_are_its_own_exceptions(served):
    client, sdk = served
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.completions.create(model="sprout", prompt="x", suffix="y")
    assert refused.value.param == "suffix"
    with pytest.raises(openai.NotFoundError):
        await sdk.completions.create(model="gpt", prompt="x")
    client.serve()
    with pytest.raises(openai.InternalServerError) as unavailable:
        await sdk.completions.create(model="sprout", prompt="x")
    assert unavailable.value.status_code == 503


async def test_a_failure_inside_a_stream_is_raised(served):
    client, sdk = served
    client.rank.hang_at = 3
    stream = await sdk.completions.create(
        model="sprout", prompt=[11], max_tokens=9, temperature=0, stream=True, extra_headers={"EEP-Timeout": "0.3"}
    )
    with pytest.raises(openai.APIError, match="deadline"):
        async for _ in stream:
            pass
