from __future__ import annotations

import msgspec
import pytest

from schemas.codec import RecordError, decode, decode_to_agent, decode_to_engine, encode, newest_version
from schemas.records import EpochRecord, Record, Registration
from tests.schemas import golden

REMEDY = "the bytes of a record changed or a record is new; run: python -m tests.schemas.golden"


@pytest.mark.parametrize("kind", golden.kinds(), ids=lambda kind: kind.__name__)
def test_every_vector_ever_written_is_read_and_the_newest_is_what_is_written(kind):
    vectors = golden.stored().get(kind.__name__)
    assert vectors, REMEDY
    read = [golden.read(kind, bytes.fromhex(vector)) for vector in vectors]
    assert golden.wire(golden.sample(kind)).hex() == vectors[-1], REMEDY
    assert read[-1] == golden.sample(kind)


@pytest.mark.parametrize("kind", golden.kinds(), ids=lambda kind: kind.__name__)
def test_unknown_fields_are_ignored(kind):
    sample = golden.sample(kind)
    fields = msgspec.msgpack.decode(golden.wire(sample)) | {"of_a_later_version": {"a": [1]}}
    assert golden.read(kind, msgspec.msgpack.encode(fields)) == sample


@pytest.mark.parametrize("kind", golden.records(), ids=lambda kind: kind.__name__)
def test_a_newer_version_is_refused_by_name(kind):
    newer = newest_version(kind) + 1
    fields = msgspec.msgpack.decode(encode(golden.sample(kind))) | {"version": newer}
    with pytest.raises(RecordError) as error:
        decode(msgspec.msgpack.encode(fields), kind, key="/eep/demo/x")
    assert str(error.value) == (
        f"/eep/demo/x: not a readable {kind.__name__}: it has version {newer}, "
        f"this build reads up to {newer - 1}: upgrade this process first"
    )


def test_a_later_version_is_spelled_even_where_it_is_the_default():
    class Second(Record, frozen=True, kw_only=True):
        version: int = 2
        blob: bytes = b""

    class First(Record, frozen=True, kw_only=True):
        blob: bytes = b""

    data = encode(Second(blob=b"\x00\xff"))
    assert decode(data, Second, key="k") == Second(blob=b"\x00\xff")
    assert decode(encode(First(blob=b"1")), Second, key="k").blob == b"1"
    with pytest.raises(RecordError, match="version 2"):
        decode(data, First, key="k")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "truncated"),
        (b"\xc1", "malformed"),
        (msgspec.msgpack.encode([1]), "Expected `object`"),
        (msgspec.msgpack.encode({"rank": "a", "incarnation": 1, "host": "h"}), "$.rank"),
        (msgspec.msgpack.encode({"rank": 1}), "incarnation"),
        (msgspec.msgpack.encode({"rank": 1, "incarnation": 1, "host": "h"})[:-1], "truncated"),
    ],
)
def test_what_does_not_decode_names_key_and_path(data, problem):
    with pytest.raises(RecordError) as error:
        decode(data, Registration, key="/eep/demo/ranks/0001")
    assert error.value.key == "/eep/demo/ranks/0001"
    assert "Registration" in str(error.value)
    assert problem in str(error.value)


def test_a_path_inside_a_record_is_named():
    fields = msgspec.msgpack.decode(encode(golden.sample(EpochRecord)))
    fields["committed"]["cut"] = "sideways"
    with pytest.raises(RecordError, match=r"\$\.committed\.cut"):
        decode(msgspec.msgpack.encode(fields), EpochRecord, key="k")


@pytest.mark.parametrize("read", [decode_to_engine, decode_to_agent])
def test_a_message_of_another_kind_is_refused(read):
    with pytest.raises(RecordError, match="Unknown"):
        read(msgspec.msgpack.encode({"type": "Unknown"}))
