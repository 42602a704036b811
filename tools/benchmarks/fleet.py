"""Ranks of the native data plane as processes of their own, without engines: for benchmarks and for fault tests.

Each rank is forked, owns a group and runs the functions that the parent sends it. The parent brokers links: it asks one
rank for the descriptors of an inbox chunk and hands them to the rank that may write there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, reduction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from native import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.process import BaseProcess

_ANSWER_S = 120.0


@dataclass
class Seat:
    """What a function that runs inside a rank gets: its place, and somewhere to keep things between calls."""

    rank: int
    incarnation: int
    groups: list[_native.Group]
    control: _native.ControlBlock
    parent: connection.Connection[Any, Any]
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> _native.Group:
        """The first group, in most fleets the only one."""
        return self.groups[0]


def _give(seat: Seat, source: int, fresh: bool) -> list[int]:  # noqa: FBT001 - crosses a pipe
    fds: list[int] = []
    for group in seat.groups:
        fds += [group.renew_inbox(source) if fresh else group.inbox_fd(source), group.doorbell_fd()]
    return fds


def _take(seat: Seat, peer: int, incarnation: int, pid: int, fds: list[int]) -> None:
    for group, inbox, doorbell in zip(seat.groups, fds[::2], fds[1::2], strict=True):
        group.connect(peer, incarnation=incarnation, inbox_fd=inbox, doorbell_fd=doorbell, pid=pid)


def _serve(seat: Seat) -> None:
    """Run what the parent sends until it hangs up."""
    while True:
        try:
            what, arguments = seat.parent.recv()
        except EOFError:
            return
        try:
            if what == "give":
                fds = _give(seat, *arguments)
                seat.parent.send(("fds", len(fds)))
                with socket.socket(fileno=os.dup(seat.parent.fileno())) as channel:
                    reduction.sendfds(channel, fds)
                for fd in fds:
                    os.close(fd)
                continue
            if what == "connect":
                peer, incarnation, pid = arguments
                with socket.socket(fileno=os.dup(seat.parent.fileno())) as channel:
                    taken = reduction.recvfds(channel, 2 * len(seat.groups))
                _take(seat, peer, incarnation, pid, taken)
                answer: Any = None
            else:
                answer = what(seat, *arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
            seat.parent.send(("error", repr(error)))
        else:
            seat.parent.send(("ok", answer))


class RankError(RuntimeError):
    """A function failed inside a rank; the message is the rank's own."""


@dataclass
class Rank:
    """The parent's end of one rank."""

    rank: int
    incarnation: int
    process: BaseProcess
    pipe: connection.Connection[Any, Any]
    control: _native.ControlBlock

    @property
    def pid(self) -> int:
        """Process id."""
        if self.process.pid is None:
            raise RankError(f"rank {self.rank} was never started")
        return self.process.pid

    def begin(self, what: Callable[..., Any] | str, *arguments: Any) -> None:
        """Send a function without waiting for its answer."""
        self.pipe.send((what, arguments))

    def answer(self, timeout_s: float = _ANSWER_S) -> Any:
        """What the function sent last has returned.

        Raises:
            RankError: it raised, it did not answer in time, or the rank died.
        """
        if not self.pipe.poll(timeout_s):
            raise RankError(f"rank {self.rank} has not answered for {timeout_s} s")
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RankError(f"rank {self.rank} is gone") from error
        if kind == "error":
            raise RankError(f"rank {self.rank}: {value}")
        return value

    def call(self, what: Callable[..., Any] | str, *arguments: Any) -> Any:
        """Run a function inside the rank."""
        self.begin(what, *arguments)
        return self.answer()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; with the default, the process is gone when this returns."""
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.process.join(_ANSWER_S)
            self.pipe.close()


class Fleet:
    """Ranks of one instance; a context manager that leaves no process behind."""

    def __init__(
        self, shape: _native.Shape, *, fixed_twin: bool = False, timeout_s: float = 1.0, hard_timeout_s: float = 30.0
    ) -> None:
        """Start none yet. ``fixed_twin``: a second group per rank, with fixed membership. The rest is the group's."""
        self.shape = shape
        self._fixed_twin = fixed_twin
        self._timeout_s = timeout_s
        self._hard_timeout_s = hard_timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="eep-fleet-")
        self._context = get_context("fork")
        self._incarnations = 0
        self.ranks: dict[int, Rank] = {}

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill whatever still runs."""
        for rank in self.ranks.values():
            with contextlib.suppress(ProcessLookupError, OSError):
                os.kill(rank.pid, signal.SIGCONT)
                rank.kill()
        self._folder.cleanup()

    def start(self, rank: int, *, ballast_bytes: int = 0) -> Rank:
        """Start a new incarnation of ``rank``, unlinked. ``ballast_bytes``: memory it touches and keeps."""
        self._incarnations += 1
        path = str(Path(self._folder.name) / f"control-{rank}-{self._incarnations}")
        control = _native.ControlBlock.create(path, rank=rank, incarnation=self._incarnations)
        ours, theirs = connection.Pipe()
        process = self._context.Process(
            target=self._body, args=(rank, self._incarnations, path, theirs, ballast_bytes), daemon=True
        )
        process.start()
        theirs.close()
        started = Rank(rank, self._incarnations, process, ours, control)
        self.ranks[rank] = started
        if started.answer() != "ready":
            raise RankError(f"rank {rank} did not start")
        return started

    def _body(
        self, rank: int, incarnation: int, path: str, parent: connection.Connection[Any, Any], ballast_bytes: int
    ) -> None:
        for other in self.ranks.values():  # forked along: the parent alone may keep a rank's pipe open
            other.pipe.close()
        control = _native.ControlBlock.attach(path)
        control.phase = _native.Phase.SERVING
        groups = [
            _native.Group(
                rank=rank,
                incarnation=incarnation,
                shape=self.shape,
                control=control,
                timeout_s=self._timeout_s,
                hard_timeout_s=self._hard_timeout_s,
                fixed=fixed,
            )
            for fixed in ((False, True) if self._fixed_twin else (False,))
        ]
        seat = Seat(rank, incarnation, groups, control, parent)
        seat.memory["ballast"] = b"\x01" * ballast_bytes
        parent.send(("ok", "ready"))
        _serve(seat)

    def link(self, writer: int, owner: int, *, fresh: bool = False) -> None:
        """Let ``writer`` write into its chunk at ``owner``; ``fresh``: after fencing whoever wrote there before."""
        giving, taking = self.ranks[owner], self.ranks[writer]
        giving.begin("give", writer, fresh)
        count = giving.answer()
        with socket.socket(fileno=os.dup(giving.pipe.fileno())) as channel:
            fds = reduction.recvfds(channel, count)
        taking.begin("connect", owner, giving.incarnation, giving.pid)
        with socket.socket(fileno=os.dup(taking.pipe.fileno())) as channel:
            reduction.sendfds(channel, fds)
        for fd in fds:
            os.close(fd)
        taking.answer()

    def link_all(self, ranks: Iterable[int]) -> None:
        """Link every pair, both ways."""
        members = list(ranks)
        for writer in members:
            for owner in members:
                if writer != owner:
                    self.link(writer, owner)

    def rejoin(self, rank: int) -> Rank:
        """A new incarnation of a dead rank, linked with everybody else; its old chunks are fenced first."""
        others = [other for other in self.ranks if other != rank]
        started = self.start(rank)
        for other in others:
            self.link(rank, other, fresh=True)
            self.link(other, rank)
        return started

    def call_all(self, what: Callable[..., Any], *arguments: Any, ranks: Sequence[int] | None = None) -> dict[int, Any]:
        """Run a function inside several ranks at once; the answers by rank."""
        members = sorted(self.ranks) if ranks is None else list(ranks)
        for rank in members:
            self.ranks[rank].begin(what, *arguments)
        return {rank: self.ranks[rank].answer() for rank in members}
