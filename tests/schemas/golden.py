"""Golden vectors: bytes of every record and message, kept for ever; ``python -m tests.schemas.golden`` adds new ones.

A vector is never changed or removed once released: an older process wrote it, and a newer one must still read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import msgspec.inspect as types

import schemas.operations
import schemas.policy  # noqa: F401  Record's subclasses are found once their modules are loaded
from schemas.codec import decode, decode_to_agent, decode_to_engine, encode, encode_message
from schemas.messages import ToAgent, ToEngine
from schemas.records import Record

FILE = Path(__file__).with_name("golden.json")


def records():
    """Every record that can stand in etcd."""
    found, waiting = [], [Record]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found.append(kind)
            waiting.append(kind)
    ours = (kind for kind in found if kind.__module__.startswith("schemas."))
    return sorted(ours, key=lambda kind: kind.__name__)


MESSAGES = dict.fromkeys(get_args(ToEngine), decode_to_engine) | dict.fromkeys(get_args(ToAgent), decode_to_agent)


def sample(kind):
    """An instance whose fields all differ from their defaults, so that each is spelled on the wire."""
    made = {}
    for index, field in enumerate(types.type_info(kind).fields):
        made[field.name] = 1 if field.name == "version" else _value(field.type, index + 2)
    return kind(**made)


SCALARS = {
    types.BoolType: lambda seed: True,
    types.IntType: lambda seed: seed * 1001,
    types.FloatType: lambda seed: seed + 0.25,
    types.StrType: lambda seed: f"text {seed} é",
    types.BytesType: lambda seed: bytes(range(seed)),
}


def _value(kind, seed):
    if scalar := SCALARS.get(type(kind)):
        return scalar(seed)
    match kind:
        case types.EnumType():
            return list(kind.cls)[-1]
        case types.StructType():
            return _struct(kind, seed)
        case types.VarTupleType() | types.ListType():
            return tuple(_value(kind.item_type, seed + step) for step in (0, 1))
        case types.TupleType():
            return tuple(_value(item, seed) for item in kind.item_types)
        case types.DictType():
            return {_value(kind.key_type, seed): _value(kind.value_type, seed)}
        case types.UnionType():
            return _value(next(item for item in kind.types if not isinstance(item, types.NoneType)), seed)
    raise TypeError(f"no sample for {kind}")


def _struct(kind, seed):
    return kind.cls(
        **{
            field.name: 1 if field.name == "version" else _value(field.type, seed + index)
            for index, field in enumerate(kind.fields)
        }
    )


def wire(value):
    return encode(value) if isinstance(value, Record) else encode_message(value)


def read(kind, data):
    return MESSAGES[kind](data) if kind in MESSAGES else decode(data, kind, key="golden")


def kinds():
    return [*records(), *MESSAGES]


def stored():
    return json.loads(FILE.read_text())


def main():
    vectors = stored() if FILE.exists() else {}
    for kind in kinds():
        fresh = wire(sample(kind)).hex()
        known = vectors.get(kind.__name__, [])
        vectors[kind.__name__] = [*(vector for vector in known if vector != fresh), fresh]
    FILE.write_text(json.dumps(vectors, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
