"""The three dialects over HTTP, against a stand-in rank whose answers are known."""

import pytest

from tests.gateway.conftest import PROMPT
from tests.standin.rank import Rank, answer_of

ANSWER = answer_of(PROMPT, 12)


@pytest.fixture
async def served(gateway):
    async with Rank() as rank, gateway(rank) as client:
        client.rank = rank
        yield client


def text_of(model, ids):
    return model.tokenizer.decode(list(ids))


COMPLETION = {"model": "sprout", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}


async def test_completion(served, model):
    status, headers, body = await served.post("/v1/completions", COMPLETION)
    assert status == 200
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert choice == {"index": 0, "text": text_of(model, ANSWER), "logprobs": None, "finish_reason": "length"}
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}
    assert headers["EEP-Request-Id"] in body["id"]


async def test_completion_streamed_with_usage(served, model):
    asked = COMPLETION | {"stream_options": {"include_usage": True}}
    events, ended = await served.events("/v1/completions", asked)
    said = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(choice["text"] for choice in said) == text_of(model, ANSWER)
    assert [choice["finish_reason"] for choice in said][-1] == "length"
    assert events[-1]["usage"]["total_tokens"] == 16
    assert ended
    assert len({event["id"] for event in events}) == 1


async def test_several_prompts_and_several_answers_are_numbered_as_openai_does(served, model):
    prompts = [[11, 12], [13, 14, 15]]
    _, _, body = await served.post("/v1/completions", COMPLETION | {"prompt": prompts, "n": 2})
    expected = [text_of(model, answer_of(prompt, 12)) for prompt in prompts for _ in range(2)]
    assert [choice["text"] for choice in body["choices"]] == expected
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]


async def test_a_text_prompt_is_tokenised_as_the_rank_would(served, model):
    _, _, body = await served.post("/v1/completions", COMPLETION | {"prompt": "The with statement", "echo": True})
    ids = list(model.encode("The with statement"))
    assert served.rank.bodies[0]["input_ids"] == ids
    assert body["choices"][0]["text"] == "The with statement" + text_of(model, answer_of(ids, 12))


async def test_completion_logprobs(served, model):
    _, _, body = await served.post("/v1/completions", COMPLETION | {"logprobs": 2})
    found = body["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [-0.5] * 12
    assert "".join(found["tokens"]) == text_of(model, ANSWER)
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]
    assert served.rank.bodies[0]["top_logprobs_num"] == 2


CHAT = {"messages": [{"role": "user", "content": "What is heapq?"}], "max_tokens": 12, "temperature": 0}


async def test_chat(served, model):
    _, _, body = await served.post("/v1/chat/completions", CHAT)
    prompt = served.rank.bodies[0]["input_ids"]
    rendered = model.tokenizer.decode(prompt, skip_special_tokens=False)
    assert rendered == "<|user|>\nWhat is heapq?<|end|>\n<|assistant|>\n"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": text_of(model, answer_of(prompt, 12))}
    assert (body["object"], choice["finish_reason"]) == ("chat.completion", "length")


async def test_chat_streamed(served, model):
    events, ended = await served.events("/v1/chat/completions", CHAT | {"n": 2})
    expected = text_of(model, answer_of(served.rank.bodies[0]["input_ids"], 12))
    for index in range(2):
        deltas = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert deltas[0]["delta"]["role"] == "assistant"
        assert not any("role" in delta["delta"] for delta in deltas[1:])
        assert "".join(delta["delta"].get("content", "") for delta in deltas) == expected
        assert deltas[-1]["finish_reason"] == "length"
    assert ended
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


async def test_chat_logprobs(served):
    _, _, body = await served.post("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2})
    found = body["choices"][0]["logprobs"]["content"]
    assert len(found) == 12
    assert found[0]["logprob"] == -0.5
    assert [each["logprob"] for each in found[0]["top_logprobs"]] == [-0.5, -1.5]


async def test_an_answer_without_a_limit_may_fill_the_context(served, model):
    served.rank.eos = answer_of([1] * 3, 1)[0]
    await served.post("/v1/completions", COMPLETION | {"max_tokens": 10**6, "stop_token_ids": [ANSWER[2]]})
    room = served.rank.bodies[0]["sampling_params"]["max_new_tokens"]
    assert room == model.context - 8 - len(PROMPT)


async def test_stop_strings_are_the_gateways_business(served, model):
    stop = text_of(model, ANSWER[5:7])
    _, _, body = await served.post("/v1/completions", COMPLETION | {"stop": [stop]})
    full = text_of(model, ANSWER)
    assert body["choices"][0]["text"] == full[: full.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert "stop" not in served.rank.bodies[0]["sampling_params"]


NATIVE = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 12, "temperature": 0}}


async def test_native_events_repeat_everything_as_sglang_does_by_default(served):
    events, ended = await served.events("/generate", NATIVE)
    assert [event["output_ids"] for event in events[:12]] == [ANSWER[: count + 1] for count in range(12)]
    assert events[-1]["output_ids"] == ANSWER
    assert events[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 12}
    assert ended


async def test_native_events_carry_only_what_is_new_when_asked(served):
    events, _ = await served.events("/generate", NATIVE, **{"EEP-Stream": "incremental"})
    assert [token for event in events for token in event["output_ids"]] == ANSWER
    assert [event["meta_info"]["completion_tokens"] for event in events[:3]] == [1, 2, 3]


async def test_native_batch_answers_a_list(served):
    prompts = [[11, 12], [13]]
    _, _, body = await served.post("/generate", NATIVE | {"input_ids": prompts, "rid": "mine"})
    assert [each["output_ids"] for each in body] == [answer_of(prompt, 12) for prompt in prompts]
    assert [each["meta_info"]["id"] for each in body] == ["mine_0", "mine_1"]


async def test_native_text_and_logprobs(served, model):
    asked = {"text": "The with", "return_logprob": True, "sampling_params": {"max_new_tokens": 3, "temperature": 0}}
    _, _, body = await served.post("/generate", asked)
    expected = answer_of(list(model.encode("The with")), 3)
    assert body["output_ids"] == expected
    assert [token for _, token, _ in body["meta_info"]["output_token_logprobs"]] == expected


async def test_models_health_readiness_and_metrics(served):
    async with served.http.get(served.url + "/v1/models") as response:
        (entry,) = (await response.json())["data"]
        assert (entry["id"], entry["max_model_len"]) == ("sprout", 2048)
    for path, status in (("/health", 200), ("/ready", 200)):
        async with served.http.get(served.url + path) as response:
            assert response.status == status
    served.serve()
    async with served.http.get(served.url + "/ready") as response:
        assert response.status == 503
    await served.post("/v1/completions", COMPLETION | {"best_of": 3})
    async with served.http.get(served.url + "/metrics") as response:
        text = await response.text()
    assert "eep_gateway_routable_ranks 0.0" in text
    assert "eep_gateway_queued_requests 0.0" in text


@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_each_sampled_answer_has_a_seed_of_its_own_and_the_header_says_what_a_resume_keeps(served, temperature):
    asked = COMPLETION | {"n": 2, "seed": 5, "temperature": temperature}
    await served.events("/v1/completions", asked)
    seeds = sorted(body["sampling_params"].get("sampling_seed", -1) for body in served.rank.bodies)
    assert seeds == ([5, 6] if temperature else [-1, -1])
    assert served.headers["EEP-Resume-Exact"] == ("false" if temperature else "true")


@pytest.mark.parametrize(
    ("path", "change", "answer"),
    [
        ("/v1/completions", {"model": "gpt"}, (404, "model_not_found", "model")),
        ("/v1/completions", {"temperature": -1}, (400, "invalid_value", "temperature")),
        ("/v1/completions", {"temperature": "hot"}, (400, "invalid_value", "temperature")),
        ("/v1/completions", {"top_p": 0}, (400, "invalid_value", "top_p")),
        ("/v1/completions", {"max_tokens": 0}, (400, "invalid_value", "max_tokens")),
        ("/v1/completions", {"n": 65}, (400, "invalid_value", "n")),
        ("/v1/completions", {"prompt": []}, (400, "invalid_value", "prompt")),
        ("/v1/completions", {"prompt": [99999]}, (400, "invalid_value", "prompt")),
        ("/v1/completions", {"prompt": [5] * 2045}, (400, "invalid_value", "prompt")),
        ("/v1/completions", {"prompt": None}, (400, "invalid_value", "prompt")),
        ("/v1/completions", {"stop": [""]}, (400, "invalid_value", "stop")),
        ("/v1/completions", {"logit_bias": {"99999": 1}}, (400, "invalid_value", "logit_bias")),
        ("/v1/completions", {"logit_bias": {"x": 1}}, (400, "invalid_value", "logit_bias")),
        ("/v1/completions", {"seed": -1}, (400, "invalid_value", "seed")),
        ("/v1/completions", {"frobnicate": 1}, (400, "invalid_value", "frobnicate")),
        ("/v1/completions", {"best_of": 2}, (400, "unsupported_parameter", "best_of")),
        ("/v1/completions", {"suffix": "x"}, (400, "unsupported_parameter", "suffix")),
        ("/v1/completions", {"echo": True, "logprobs": 1}, (400, "unsupported_parameter", "echo")),
        ("/v1/completions", {"regex": "a+"}, (400, "unsupported_parameter", "regex")),
        ("/v1/completions", {"response_format": {"type": "json_object"}},
         (400, "unsupported_parameter", "response_format")),
        ("/v1/chat/completions", {"tools": [{"type": "function"}]}, (400, "unsupported_parameter", "tools")),
        ("/v1/chat/completions", {"messages": []}, (400, "invalid_value", "messages")),
        ("/v1/chat/completions", {"top_logprobs": 2}, (400, "invalid_value", "top_logprobs")),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         (400, "unsupported_parameter", "messages")),
        ("/generate", {"text": "x"}, (400, "invalid_value", "text")),
        ("/generate", {"input_ids": [1, [2]]}, (400, "invalid_value", "input_ids")),
        ("/generate", {"image_data": "x"}, (400, "unsupported_parameter", "image_data")),
        ("/generate", {"logprob_start_len": 0}, (400, "unsupported_parameter", "logprob_start_len")),
        ("/generate", {"sampling_params": {"json_schema": "{}"}}, (400, "unsupported_parameter", "json_schema")),
        ("/generate", {"sampling_params": {"top_k": 0}}, (400, "invalid_value", "top_k")),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_names_its_field_and_reaches_no_rank(served, path, change, answer):
    status, code, param = answer
    base = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT, "/generate": NATIVE}[path]
    got, _, body = await served.post(path, base | change)
    error = body["error"]
    assert (got, error["code"], error["param"]) == (status, code, param), error
    assert param in error["message"] or status == 404
    assert served.rank.bodies == []
    assert not served.audit.read_text()


async def test_harmless_fields_are_ignored(served):
    status, _, _ = await served.post("/v1/completions", COMPLETION | {"user": "me", "tools": None, "suffix": ""})
    assert status == 200


async def test_what_is_not_json_is_refused(served):
    async with served.http.post(served.url + "/generate", data=b"{") as response:
        assert response.status == 400
    async with served.http.post(served.url + "/generate", data=b"[]") as response:
        assert (await response.json())["error"]["message"] == "the body is not a JSON object"


async def test_min_p_never_reaches_seeded_ranks(gateway):
    async with Rank() as rank, gateway(rank, seeded_ranks=True) as client:
        status, _, body = await client.generate(temperature=0.7, min_p=0.1)
        assert (status, body["error"]["param"], rank.bodies) == (400, "min_p", [])
        assert (await client.generate(temperature=0.7))[1]["EEP-Resume-Exact"] == "true"
        params = rank.bodies[0]["sampling_params"]
        assert params["sampling_seed"] >= 0
        assert params["top_k"] == 2048, "a neighbour with top_k would change how candidates are numbered"
