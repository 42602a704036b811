import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.gateway.http_answer import ResponseError, ResponseReader

CHUNKED = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(content):
    return b"%x\r\n%b\r\n" % (len(content), content)


def _read(data, size=None):
    reader = ResponseReader()
    size = size or len(data)
    parts = [reader.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return reader, b"".join(parts)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.sampled_from([b"", b"x-digest: 1\r\n"]), st.data())
def test_chunks_are_joined_however_bytes_are_cut(chunks, trailers, data):
    sent = CHUNKED + b"".join(map(_chunk, chunks)) + b"0\r\n" + trailers + b"\r\n"
    cut = data.draw(st.integers(1, len(sent)))
    reader, body = _read(sent, cut)
    assert (reader.status, body, reader.ended, reader.kept) == (200, b"".join(chunks), True, True)


@given(st.binary(max_size=60), st.integers(1, 60))
def test_a_body_of_known_length_ends_with_it(body, cut):
    reader, read = _read(b"HTTP/1.1 429 Too Many\r\ncontent-length: %d\r\n\r\n" % len(body) + body, cut)
    assert (reader.status, read, reader.ended) == (429, body, True)


@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_part_comes_with_the_bytes_that_bring_it(content, data):
    sent = CHUNKED + b"%x\r\n" % len(content) + content
    at = data.draw(st.integers(len(sent) - len(content), len(sent)))
    reader = ResponseReader()
    assert reader.feed(sent[:at]) == content[: at - len(sent) + len(content)]
    assert reader.feed(sent[at:]) == content[at - len(sent) + len(content) :]
    assert not reader.ended


def test_a_head_alone_has_a_status_and_no_body():
    reader = ResponseReader()
    assert reader.feed(CHUNKED[:-1]) == b""
    assert reader.status == 0
    assert reader.feed(CHUNKED[-1:]) == b""
    assert reader.status == 200


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.1 200 OK\r\nConnection: Close\r\n", b"HTTP/1.0 200\r\n"],
)
def test_a_connection_is_not_kept_when_the_server_closes_it(head):
    reader, _ = _read(head + b"content-length: 0\r\n\r\n")
    assert reader.ended
    assert not reader.kept


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",  # its end could not be told from a break
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxx",
        CHUNKED + b"no number\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"0\r\n\r\nHTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK" + b"x" * 70000,
    ],
)
def test_what_is_no_response_is_an_error(data):
    with pytest.raises(ResponseError, match=r"."):
        ResponseReader().feed(data)
