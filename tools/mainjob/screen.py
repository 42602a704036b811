"""What a person watches: one client's text as it streams, the ranks, and what happened, in order."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from schemas.records import EpochRecord, Registration
    from schemas.vocabulary import Rank
    from tools.loadgen import Answer

_LINES = 14
_TEXT_CHARACTERS = 700
_MARKS = {"serving": "green", "ready": "yellow", "starting": "yellow", "lost": "red"}


@dataclass
class Screen:
    """Live on a terminal, plain lines elsewhere. Use as a context manager.

    Attributes:
        model: whose tokenizer turns the watched answer into text.
        follow: id of the request whose text is shown; the next one when it has ended.
    """

    model: Path
    console: Console = field(default_factory=lambda: Console(file=sys.stderr))
    _began: float = field(default_factory=time.monotonic)
    _happened: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    _ranks: list[tuple[Rank, str, str]] = field(default_factory=list)
    _watched: Answer | None = None
    _links: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        self._live = Live(get_renderable=self._draw, console=self.console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.__exit__(kind, error, trace)

    def tell(self, line: str) -> None:
        """Something happened."""
        stamped = f"{time.monotonic() - self._began:7.1f} s  {line}"
        self._happened.append(stamped)
        if not self.console.is_terminal:
            self.console.print(stamped, highlight=False, markup=False, soft_wrap=True)

    def link(self, name: str, url: str) -> None:
        """Show an address."""
        self._links[name] = url

    def saw(self, answer: Answer) -> None:
        """A client received a token."""
        if self._watched is None or self._watched.finish:
            self._watched = answer

    def show(self, record: EpochRecord | None, registrations: dict[Rank, Registration], ranks: set[Rank]) -> None:
        """The cluster as it is now."""
        members = {member.rank: member.incarnation for member in record.committed.members} if record else {}
        self._ranks = [(rank, *_state(rank, members, registrations)) for rank in sorted(ranks)]

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False, expand=False)
        for title in ("rank", "state", "process"):
            table.add_column(title)
        for rank, state, process in self._ranks:
            table.add_row(str(rank), Text(state, style=_MARKS[state]), process)
        links = Text("   ".join(f"{name} {url}" for name, url in self._links.items()), style="dim")
        return Group(
            Panel(self._text(), title="one client's stream", height=9),
            table,
            Panel(Text("\n".join(self._happened)), title="what happened"),
            links,
        )

    def _text(self) -> Text:
        if self._watched is None:
            return Text("…", style="dim")
        prompt = self._tokenizer.decode(list(self._watched.ask.prompt))
        said = self._tokenizer.decode(self._watched.tokens)
        shown = Text(prompt[-200:], style="dim")
        shown.append(said[-_TEXT_CHARACTERS:], style="bold")
        if self._watched.resumed:
            shown.append(f"  [resumed on rank {self._watched.ranks[-1]}]", style="green")
        return shown


def _state(rank: Rank, members: dict[Rank, int], registrations: dict[Rank, Registration]) -> tuple[str, str]:
    there = registrations.get(rank)
    if there is None:
        return ("lost" if rank in members else "starting"), ""
    process = f"incarnation {there.incarnation}" if there.incarnation else ""
    if members.get(rank) == there.incarnation and there.holds:
        return "serving", process
    return ("ready" if there.ready else "starting"), process
