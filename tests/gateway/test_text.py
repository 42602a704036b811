from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from controlplane.gateway.text import Detokenizer, StopMatcher
from tools.models.random_moe import SHIPPED

TOKENIZER = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
ids = st.lists(st.integers(0, 2047), max_size=60)
texts = st.text(max_size=60)


def _pieces(tokens, *, skip_special=True):
    stream = Detokenizer(TOKENIZER, skip_special=skip_special)
    return [stream.push(token) for token in tokens] + [stream.flush()]


@settings(deadline=None)  # a busy machine is no failure
@given(texts)
def test_pieces_of_any_text_join_to_that_text(text):
    assert "".join(_pieces(TOKENIZER.encode(text).ids, skip_special=False)) == text


@settings(deadline=None)  # a busy machine is no failure
@given(ids)
def test_pieces_of_any_ids_join_to_their_decoding(tokens):
    assert "".join(_pieces(tokens)) == TOKENIZER.decode(tokens)


@settings(deadline=None)  # a busy machine is no failure
@given(texts)
def test_no_piece_ends_inside_a_character(text):
    pieces = _pieces(TOKENIZER.encode(text).ids)[:-1]
    assert not any(piece.endswith("\ufffd") for piece in pieces if "\ufffd" not in text)


def test_a_character_of_four_bytes_comes_at_once():
    tokens = TOKENIZER.encode("𝔘").ids
    assert len(tokens) > 1
    assert _pieces(tokens) == [""] * (len(tokens) - 1) + ["𝔘", ""]


def test_a_special_token_has_no_text_unless_it_is_kept():
    tokens = [*TOKENIZER.encode("a").ids, 1, *TOKENIZER.encode("b").ids]
    assert "".join(_pieces(tokens)) == "ab"
    assert "".join(_pieces(tokens, skip_special=False)) == "a<|end|>b"


stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(alphabet="abcd", max_size=30), stops, st.data())
def test_the_earliest_stop_string_ends_the_text_however_it_is_cut(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(tuple(stops))
    said = ""
    for piece in pieces:
        said += matcher.push(piece)
        assert text.startswith(said)
        if matcher.matched:
            break
    else:
        said += matcher.flush()
    # a matcher that sees one character at a time is the plain definition of "earliest to be complete"
    reference, expected = StopMatcher(tuple(stops)), ""
    for character in text:
        expected += reference.push(character)
        if reference.matched:
            break
    else:
        expected += reference.flush()
    assert bool(matcher.matched) == bool(reference.matched)
    if not matcher.matched:
        assert said == expected == text
    else:
        assert said + matcher.matched == text[: len(said) + len(matcher.matched)]
        assert not any(stop in said for stop in stops)


def test_nothing_is_held_back_without_need():
    matcher = StopMatcher(("<end>",))
    assert matcher.push("hello <") == "hello "
    assert matcher.push("b>") == "<b>"
    assert (matcher.push("x<end>y"), matcher.matched) == ("x", "<end>")
