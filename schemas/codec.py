"""Bytes ↔ records and messages, with errors a person can act on.

A record of version 1 does not spell its version; later ones do, so that an older build refuses them by name instead of
misreading them.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import msgspec

from schemas.messages import ToAgent, ToEngine
from schemas.records import Record

R = TypeVar("R", bound=Record)


class RecordError(ValueError):
    """Stored or received bytes that are not what they should be: who wrote them is wrong, or newer than this build."""

    def __init__(self, key: str, what: str, problem: str) -> None:
        self.key = key
        self.what = what
        self.problem = problem
        super().__init__(f"{key}: not a readable {what}: {problem}")


class _Versioned(msgspec.Struct):
    version: int = 1


_version = msgspec.msgpack.Decoder(_Versioned)
_decoders: dict[type[Record], msgspec.msgpack.Decoder[Record]] = {}
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def encode(record: Record) -> bytes:
    """The bytes of a record: a msgpack map by field name, defaults left out."""
    if record.version == 1:
        return msgspec.msgpack.encode(record)
    fields = msgspec.to_builtins(record, builtin_types=(bytes,))
    return msgspec.msgpack.encode({**fields, "version": record.version})


def decode(data: bytes, kind: type[R], *, key: str) -> R:
    """Read a record; fields that this build does not know are ignored.

    Raises:
        RecordError: not such a record (with the failing path), or of a newer version.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    newest = newest_version(kind)
    try:
        found = _version.decode(data).version
        if found <= newest:
            return decoder.decode(data)  # type: ignore[return-value]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError(key, kind.__name__, f"{error}; {len(data)} bytes") from error
    raise RecordError(
        key, kind.__name__, f"it has version {found}, this build reads up to {newest}: upgrade this process first"
    )


@cache  # msgspec evaluates every annotation again for it: a millisecond a record
def newest_version(kind: type[Record]) -> int:
    """The newest version of a record that this build reads and writes."""
    return next(int(field.default) for field in msgspec.structs.fields(kind) if field.name == "version")


def encode_message(message: ToEngine | ToAgent) -> bytes:
    """The bytes of one agent ↔ engine message, without the frame's length."""
    return msgspec.msgpack.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Read a message of the agent.

    Raises:
        RecordError: not one that this build knows.
    """
    try:
        return _to_engine.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError("agent → engine", "message", str(error)) from error


def decode_to_agent(data: bytes) -> ToAgent:
    """Read a message of the engine.

    Raises:
        RecordError: not one that this build knows.
    """
    try:
        return _to_agent.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError("engine → agent", "message", str(error)) from error
