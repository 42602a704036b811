"""The settings file: check one, write the commented defaults, export the JSON Schema."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from schemas.config import Config, ConfigError, check_files, json_schema, load_config
from schemas.policy import Spec

DEFAULT_FILE = Path(__file__).parents[2] / "deploy" / "eep.toml"
_HEAD = """\
# Settings of an EEP instance: one file for the control plane, the workers and the gateway; each reads its sections.
# Every setting stands here with its default. Check a file with `tools/config FILE`.
# Written by `tools/config --write` from schemas/config.py and schemas/policy.py: change a default or a comment there.
"""
_WIDTH = 118


def render() -> str:
    """The commented default file."""
    parts = [_HEAD]
    for section in msgspec.structs.fields(Config):
        kind = section.type
        parts.append(f"\n# {_first_line(inspect.getdoc(kind) or '')}\n[{section.name}]\n")
        comments = _field_docs(Spec) | _field_docs(kind)  # [policy] sets fields of the Spec, explained there
        for field in msgspec.structs.fields(kind):
            parts.extend(f"# {line}\n" for line in textwrap.wrap(comments.get(field.name, ""), _WIDTH))
            parts.append(f"{field.name} = {_toml(field.default)}\n")
    return "".join(parts)


def _first_line(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split()).replace("``", "")


def _field_docs(kind: type) -> dict[str, str]:
    """The string below each annotated field."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docs: dict[str, str] = {}
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            docs[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value.value if isinstance(value, Enum) else value)  # TOML's scalars are JSON's


def main(argv: list[str]) -> int:
    """Check FILE, or print or write what follows from the structs."""
    parser = argparse.ArgumentParser(prog="tools/config", description=__doc__)
    parser.add_argument("file", nargs="?", help="settings file to check")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema")
    parser.add_argument("--defaults", action="store_true", help="print the commented defaults")
    parser.add_argument("--write", action="store_true", help=f"write them to {DEFAULT_FILE.name}")
    options = parser.parse_args(argv)
    if options.schema:
        print(json.dumps(json_schema(), indent=2))
    if options.defaults:
        print(render(), end="")
    if options.write:
        DEFAULT_FILE.parent.mkdir(exist_ok=True)
        DEFAULT_FILE.write_text(render(), encoding="utf-8")
    if options.file:
        try:
            check_files(load_config(options.file), source=options.file)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return 78  # EX_CONFIG of sysexits.h
        print(f"{options.file}: every setting can be used")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
