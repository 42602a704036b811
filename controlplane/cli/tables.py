"""How answers look: a table whose columns appear when a row has a value, or JSON as the API gave it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Output(StrEnum):
    """``-o``."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


STYLES = {
    "active": "green",
    "joining": "cyan",
    "linked": "cyan",
    "draining": "yellow",
    "cordoned": "yellow",
    "suspect": "bold yellow",
    "fenced": "bold red",
    "empty": "dim",
    "done": "green",
    "running": "cyan",
    "pending": "cyan",
    "refused": "yellow",
    "cancelled": "yellow",
    "failed": "bold red",
}
"""State → style; the word itself stands there too, so that nothing depends on colour."""


@dataclass(frozen=True)
class Column:
    """One column: how a row gives its cell. An empty cell is no value; a column of such cells is not shown."""

    title: str
    cell: Callable[[dict[str, Any]], str]
    wide: bool = False
    """Only with ``-o wide``."""
    always: bool = False
    right: bool = False


def field(name: str) -> Callable[[dict[str, Any]], str]:
    """The cell that shows a member as it is; nothing for 0, false, null and empty."""
    return lambda row: str(row[name]) if row.get(name) else ""


def numbers(ranks: Sequence[int]) -> str:
    """``0-3,7``: sorted ranks, runs folded."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def ago(moment: str | None, *, now: datetime | None = None) -> str:
    """``3m`` since an RFC 3339 time; nothing for never."""
    if not moment:
        return ""
    then = datetime.fromisoformat(moment)
    return duration(((now or datetime.now(UTC)) - then).total_seconds())


def duration(seconds: float) -> str:
    """The two digits that matter: ``250ms``, ``3.2s``, ``4m``, ``7h``, ``2d``."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1e3:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    for limit, unit, name in ((3600, 60, "m"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit:.0f}{name}"
    return f"{seconds // 86400:.0f}d"


def size(count: float) -> str:
    """Bytes with a binary prefix."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(columns: Iterable[Column], rows: Sequence[dict[str, Any]], *, wide: bool) -> Table:
    """The rows, with the columns that have something to say."""
    cells = [(column, [column.cell(row) for row in rows]) for column in columns if wide or not column.wide]
    shown = [(column, values) for column, values in cells if column.always or wide or any(values)]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column, _ in shown:
        made.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for values in zip(*(values for _, values in shown), strict=True):
        made.add_row(*(Text(value, style=STYLES.get(value, "")) for value in values))
    return made


def print_json(document: object) -> None:
    """The API's own JSON, indented, for programs: no colour, no wrapping."""
    Console(soft_wrap=True, highlight=False, markup=False, color_system=None).print(
        msgspec.json.format(msgspec.json.encode(document)).decode()
    )


def show(
    document: dict[str, Any], columns: Iterable[Column], rows: Sequence[dict[str, Any]], *, output: Output
) -> None:
    """``document`` as JSON or its rows as a table; a pipe gets wide lines instead of folded ones."""
    if output is Output.JSON:
        print_json(document)
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=250)
    console.print(table(columns, rows, wide=output is Output.WIDE))
