import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from controlplane.gateway.errors import DeadlineError, GivenUpError, RefusedByRankError, UnavailableError
from controlplane.gateway.generation import (
    Abandoned,
    Abort,
    Assigned,
    Begin,
    DeadlinePassed,
    Fail,
    Finish,
    Generation,
    HandOver,
    Lost,
    Patience,
    Piece,
    Received,
    Send,
    Spec,
)
from controlplane.gateway.sampling import Sampling
from controlplane.gateway.upstream import Refusal, Tokens
from tests.standin.rank import answer_of
from tools.models.random_moe import SHIPPED

TOKENIZER = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
PROMPT = (11, 12, 13)


def generation(*, stops=(), patience=None, seeded=False, keep_stop=False, **sampling):
    settings = {"max_new_tokens": 20, "temperature": 0.0} | sampling
    spec = Spec(prompt=PROMPT, sampling=Sampling(**settings), stops=stops, eos=(1,), keep_stop=keep_stop)
    return Generation(spec, TOKENIZER, patience or Patience(), seeded_ranks=seeded, rid="r")


def ids_of(instructions):
    return [token for each in instructions if isinstance(each, Piece) for token in each.ids]


def text_of(instructions):
    return "".join(each.text for each in instructions if isinstance(each, Piece))


def test_it_begins_by_sending_the_prompt():
    (send,) = generation().handle(Begin())
    assert (send.attempt, send.settle, send.resumed) == (1, False, False)
    assert send.body["rid"] == "r-1"
    assert send.body["input_ids"] == list(PROMPT)
    assert send.body["stream"] is True
    assert send.body["sampling_params"]["max_new_tokens"] == 20


def test_a_dead_rank_is_followed_by_one_that_goes_on_after_the_last_token():
    made = generation(min_new_tokens=8)
    made.handle(Begin())
    made.handle(Assigned(2))
    made.handle(Received(1, Tokens(ids=(21, 22, 23, 24, 25))))
    (send,) = made.handle(Lost(1, "reset", accepted=True))
    assert (send.attempt, send.settle, send.resumed) == (2, False, True)
    assert send.body["input_ids"] == [*PROMPT, 21, 22, 23, 24, 25]
    assert send.body["sampling_params"]["max_new_tokens"] == 15
    assert send.body["sampling_params"]["min_new_tokens"] == 3
    assert (made.resumed, made.retried, made.ranks) == (1, 0, [2])


def test_a_late_word_of_a_rank_that_was_left_is_ignored():
    made = generation()
    made.handle(Begin())
    made.handle(Lost(1, "reset", accepted=False))
    assert made.handle(Received(1, Tokens(ids=(99,), finish="length"))) == []
    assert made.handle(Lost(1, "again", accepted=True)) == []
    assert made.tokens == []


def test_it_ends_once():
    made = generation()
    made.handle(Begin())
    last = made.handle(Received(1, Tokens(ids=(21,), finish="stop", matched=None)))
    assert last[-1] == Finish("stop", None)
    for event in (Lost(1, "x", accepted=True), DeadlinePassed(), Abandoned(UnavailableError("x")), HandOver(1, "x")):
        assert made.handle(event) == []


@pytest.mark.parametrize(
    ("sampling", "tokens", "finish"),
    [
        ({"max_new_tokens": 2}, (21, 22), Finish("length")),
        ({}, (21, 1), Finish("stop", 1)),
        ({"stop_token_ids": (22,)}, (21, 22), Finish("stop", 22)),
    ],
)
def test_a_rank_that_dies_after_the_last_token_leaves_a_complete_answer(sampling, tokens, finish):
    made = generation(**sampling)
    made.handle(Begin())
    made.handle(Received(1, Tokens(ids=tokens)))
    assert made.handle(Lost(1, "reset", accepted=True))[-1] == finish
    assert made.resumed == 0


def test_an_end_token_that_is_to_be_ignored_ends_nothing():
    made = generation(ignore_eos=True)
    made.handle(Begin())
    made.handle(Received(1, Tokens(ids=(21, 1))))
    assert isinstance(made.handle(Lost(1, "reset", accepted=True))[0], Send)


def test_a_request_that_ranks_die_of_is_given_up():
    made = generation(patience=Patience(strikes=2))
    made.handle(Begin())
    made.handle(Assigned(0))
    (again,) = made.handle(Lost(1, "ended early", accepted=True))
    assert again.settle
    made.handle(Assigned(3))
    abort, fail = made.handle(Lost(2, "ended early", accepted=True))
    assert abort == Abort(2)
    assert isinstance(fail.error, GivenUpError)
    assert "2 ranks died" in fail.error.message
    assert "[0, 3]" in fail.error.message


def test_ranks_that_die_under_a_request_that_gets_on_do_not_count_against_it():
    made = generation(max_new_tokens=1000, patience=Patience(strikes=2, progress_tokens=4))
    made.handle(Begin())
    for attempt in range(1, 8):
        made.handle(Received(attempt, Tokens(ids=(21, 22, 23, 24))))
        (send,) = made.handle(Lost(attempt, "killed", accepted=True))
        assert not send.settle
    assert (made.strikes, made.resumed) == (0, 7)


def test_a_connection_that_was_never_accepted_does_not_count_against_it():
    made = generation(patience=Patience(strikes=1, attempts=5))
    made.handle(Begin())
    for attempt in range(1, 50):
        assert isinstance(made.handle(Lost(attempt, "refused", accepted=False))[0], Send)


def test_ranks_that_keep_failing_end_it():
    made = generation(patience=Patience(attempts=5))
    made.handle(Begin())
    for attempt in range(1, 5):
        assert isinstance(made.handle(Received(attempt, Refusal(500, "internal")))[0], Send)
    assert isinstance(made.handle(Received(5, Refusal(500, "internal")))[-1].error, GivenUpError)


def test_what_one_rank_calls_invalid_no_other_is_asked():
    made = generation()
    made.handle(Begin())
    assert isinstance(made.handle(Received(1, Refusal(400, "too long")))[-1].error, RefusedByRankError)


def test_what_one_rank_cannot_do_now_another_is_asked():
    made = generation()
    made.handle(Begin())
    assert isinstance(made.handle(Received(1, Refusal(503, "queue full")))[0], Send)
    assert made.retried == 1


def test_a_hand_over_stops_the_old_rank_and_goes_on_elsewhere():
    made = generation()
    made.handle(Begin())
    made.handle(Received(1, Tokens(ids=(21,))))
    abort, send = made.handle(HandOver(1, "drains"))
    assert abort == Abort(1)
    assert send.body["input_ids"] == [*PROMPT, 21]


def test_the_deadline_ends_it_with_an_error_that_says_how_far_it_got():
    made = generation()
    made.handle(Begin())
    made.handle(Received(1, Tokens(ids=(21, 22))))
    abort, fail = made.handle(DeadlinePassed())
    assert abort == Abort(1)
    assert isinstance(fail.error, DeadlineError)
    assert "after 2 tokens" in fail.error.message


def _tokens_of(text):
    return tuple(TOKENIZER.encode(text).ids)


def test_a_stop_string_that_straddles_the_change_of_ranks_is_found():
    before, after = _tokens_of("one STO"), _tokens_of("P two")
    made = generation(stops=("STOP",), max_new_tokens=50)
    seen = made.handle(Begin())
    seen += made.handle(Received(1, Tokens(ids=before)))
    seen += made.handle(Lost(1, "reset", accepted=True))
    seen += made.handle(Received(2, Tokens(ids=after)))
    assert text_of(seen) == "one "
    assert seen[-2:] == [Abort(2), Finish("stop", "STOP")]


def test_a_kept_stop_string_stays_in_the_text():
    made = generation(stops=("STOP",), keep_stop=True)
    seen = made.handle(Begin()) + made.handle(Received(1, Tokens(ids=_tokens_of("one STOP two"))))
    assert text_of(seen) == "one STOP"


def test_the_token_that_stops_has_no_text_unless_it_is_kept():
    stop = _tokens_of("b")[0]
    tokens = Tokens(ids=(*_tokens_of("a"), stop), finish="stop", matched=stop)
    made, kept = generation(stop_token_ids=(stop,)), generation(stop_token_ids=(stop,), keep_stop=True)
    assert text_of(made.handle(Begin()) + made.handle(Received(1, tokens))) == "a"
    assert text_of(kept.handle(Begin()) + kept.handle(Received(1, tokens))) == "ab"


def test_text_that_might_have_become_a_stop_string_comes_with_the_end():
    made = generation(stops=("STOP",))
    made.handle(Begin())
    made.handle(Received(1, Tokens(ids=_tokens_of("one ST"))))
    assert text_of(made.handle(Received(1, Tokens(finish="length")))) == "ST"


@pytest.mark.parametrize(
    ("sampling", "seeded", "why"),
    [
        ({}, False, ""),
        ({"temperature": 0.8, "top_k": 1}, False, ""),
        ({"temperature": 0.8, "sampling_seed": 3}, True, ""),
        ({"temperature": 0.8, "sampling_seed": 3}, False, "temperature"),
        ({"temperature": 0.8}, True, "sampling_seed"),
        ({"frequency_penalty": 0.5}, False, ""),
        ({"presence_penalty": 0.5}, False, "presence_penalty"),
        ({"repetition_penalty": 1.1}, False, "repetition_penalty"),
    ],
)
def test_it_knows_whether_a_resumed_answer_is_exact(sampling, seeded, why):
    made = generation(seeded=seeded, **sampling)
    made.handle(Begin())
    made.handle(Received(1, Tokens(ids=(21,))))
    made.handle(Lost(1, "reset", accepted=True))
    assert made.inexact.startswith(why)
    assert bool(made.inexact) == bool(why)


def test_a_frequency_penalty_goes_over_as_an_equal_bias():
    made = generation(frequency_penalty=0.5, logit_bias={"21": 1.0})
    made.handle(Begin())
    made.handle(Received(1, Tokens(ids=(21, 22, 21))))
    (send,) = made.handle(Lost(1, "reset", accepted=True))
    params = send.body["sampling_params"]
    assert params["frequency_penalty"] == 0.5
    assert params["logit_bias"] == {"21": 0.0, "22": -0.5}


cuts = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["lost", "handover", "late"])), max_size=6)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 40), cuts, st.integers(1, 6))
def test_whatever_happens_to_the_ranks_the_client_gets_the_undisturbed_answer(length, cuts, chunk):
    """Each rank is the stand-in's model: it goes on from exactly what it is sent, or its tokens differ."""
    made = generation(max_new_tokens=length, patience=Patience(strikes=100, attempts=100), ignore_eos=True)
    instructions = made.handle(Begin())
    said = []
    while not made.done:
        send = next(each for each in reversed(instructions) if isinstance(each, Send))
        made.handle(Assigned(0))
        wanted = send.body["sampling_params"]["max_new_tokens"]
        answer = answer_of(send.body["input_ids"], wanted)
        survive, kind = cuts.pop() if cuts else (wanted, "")
        for start in range(0, min(survive, wanted), chunk):
            part = answer[start : min(start + chunk, survive, wanted)]
            finish = "length" if start + len(part) == wanted else ""
            said += made.handle(Received(send.attempt, Tokens(ids=tuple(part), finish=finish)))
        if made.done:
            break
        lost = HandOver(send.attempt, "drain") if kind == "handover" else Lost(send.attempt, "dead", accepted=True)
        instructions = made.handle(lost)
        said += instructions
        if kind == "late":
            said += made.handle(Received(send.attempt, Tokens(ids=(7, 7, 7))))
    expected = answer_of(PROMPT, length)
    assert ids_of(said) == made.tokens == expected
    assert text_of(said) == TOKENIZER.decode(expected)
    assert [each for each in said if isinstance(each, Finish | Fail)] == [Finish("length")]
