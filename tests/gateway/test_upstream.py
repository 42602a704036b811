import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.gateway.upstream import AnswerReader, Refusal, Tokens


def event(ids, total, *, finish=None, **meta):
    meta = {"completion_tokens": total, "finish_reason": finish, "id": "x", "weight_version": "d", **meta}
    return b"data: " + json.dumps({"text": "t", "output_ids": ids, "meta_info": meta}).encode() + b"\n\n"


LENGTH = {"type": "length", "length": 3}


def _read(data, size=None):
    reader = AnswerReader()
    size = size or len(data)
    found = [what for at in range(0, len(data), size) for what in reader.feed(data[at : at + size])]
    return found, reader.ended


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.booleans(), st.integers(1, 40))
def test_every_token_once_whether_events_repeat_or_not_and_however_bytes_are_cut(sizes, incremental, cut):
    tokens = list(range(100, 100 + sum(sizes)))
    data, sent = b"", 0
    for size in sizes:
        sent += size
        data += event(tokens[sent - size : sent] if incremental else tokens[:sent], sent)
    found, ended = _read(data + b"data: [DONE]\n\n", cut)
    assert [token for what in found for token in what.ids] == tokens
    assert ended


def test_a_finish_reason_comes_with_the_last_tokens():
    found, _ = _read(event([5, 6], 2) + event([7], 3, finish={"type": "stop", "matched": 7}))
    assert found == [Tokens(ids=(5, 6)), Tokens(ids=(7,), finish="stop", matched=7)]


def test_logprobs_are_those_of_the_new_tokens():
    probabilities = [[-0.1, 5, None], [-0.2, 6, None]]
    found, _ = _read(
        event([5, 6], 2, output_token_logprobs=probabilities, output_top_logprobs=[None, [[-0.2, 6, None]]])
    )
    assert found[0].logprobs == ((-0.1, 5, None), (-0.2, 6, None))
    assert found[0].top_logprobs == (None, ((-0.2, 6, None),))
    again, _ = _read(event([5], 1) + event([5, 6], 2, output_token_logprobs=probabilities))
    assert again[1].logprobs == ((-0.2, 6, None),)


@pytest.mark.parametrize(
    ("content", "status", "final"),
    [
        ({"error": {"message": "too long", "code": 400}}, 400, True),
        ({"error": {"message": "no code"}}, 500, False),
        ({"output_ids": [1], "meta_info": {"finish_reason": {"type": "abort", "message": "m"}}}, 500, False),
        ({"meta_info": {"finish_reason": {"type": "abort", "message": "m", "status_code": 400}}}, 400, True),
        ({"meta_info": {"finish_reason": {"type": "abort", "message": "m", "status_code": 503}}}, 503, False),
        ({"meta_info": {"finish_reason": {"type": "abort", "message": "m", "status_code": 429}}}, 429, False),
    ],
)
def test_errors_inside_a_stream_are_refusals(content, status, final):
    (refusal,), _ = _read(b"data: " + json.dumps(content).encode() + b"\n\n")
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.final) == (status, final)


def test_what_sglang_would_not_send_is_an_error():
    with pytest.raises(msgspec.MsgspecError):
        AnswerReader().feed(b"data: {broken\n\n")
