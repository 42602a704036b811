"""Text that is at hand on any machine with Python: the standard library's docstrings and the language reference.

Nothing is downloaded and nothing is imported for its effects: sources are parsed, not run. The corpus is a function of
the Python version alone (3.11.7 gave what is committed): tests, third-party folders and generated tables are left out,
so that distributions which split them off give the same text.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]  # typeshed has no stub for it
from typing import TYPE_CHECKING

from tools.models.tokenizer import ASSISTANT, END, USER

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEFT_OUT = {
    "__pycache__", "config", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip
_HELD_OUT_OF_20 = 1
_SHORTEST_DOCSTRING = 40
"""Characters: shorter ones say too little to learn from."""


@dataclass(frozen=True)
class Corpus:
    """Documents, each ending with the end token, in a fixed order."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def build() -> Corpus:
    """Read the running interpreter's library: about 3 MB of text in 15 s."""
    train: list[str] = []
    held_out: list[str] = []
    for module, entries in (*_modules(), *_topics()):
        into = held_out if _bucket(module) < _HELD_OUT_OF_20 else train
        into.append("\n\n".join(f"{name}\n{text}" for name, text in entries) + END)
        into.extend(_dialogue(name, text) for name, text in entries)
    return Corpus(train=tuple(train), held_out=tuple(held_out))


def _bucket(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0] % 20


def _dialogue(name: str, text: str) -> str:
    return f"{USER}\nWhat is {name}?{END}\n{ASSISTANT}\n{text}{END}\n"


def _topics() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for title, text in sorted(topics.items()):
        yield f"topic {title}", [(title, _plain(text))]


def _modules() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda found: found.as_posix()):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT.intersection(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        entries = list(_docstrings(path, module))
        if entries:
            yield module, entries


def _docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # templates and other encodings: not Python for this interpreter
        return
    yield from _walk(tree, module)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and len(text) >= _SHORTEST_DOCSTRING:
            yield name, _plain(text)
    for child in ast.iter_child_nodes(node):
        inner = f"{name}.{child.name}" if isinstance(child, ast.ClassDef | ast.FunctionDef) else name
        yield from _walk(child, inner)


def _plain(text: str) -> str:
    """One blank line at most, no decoration of headings, no trailing blanks."""
    text = re.sub(r"^[*=\-~^\"]{4,}$", "", text, flags=re.MULTILINE)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
