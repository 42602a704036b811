"""Processes that cannot outlive us.

Everything the main job starts, and everything those programs start, is gone when it ends: on a normal end because the
household ends its members; on an exception because it is a context manager; on SIGKILL of the main job itself because
every child asks the kernel to be killed with its parent (``PR_SET_PDEATHSIG``). Grandchildren whose parent died first
come to us (``PR_SET_CHILD_SUBREAPER``), are known by the household's mark in their environment, and are ended too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import psutil

from worker.engine.tether import prctl, tethered
from worker.engine.tree import HEIR, remove, shared_by

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

PR_SET_CHILD_SUBREAPER = 36
MARK = "EEP_HOUSEHOLD"
_TRACKER_S = 1.0
"""For resource trackers to remove what others left; it takes milliseconds."""


class ProcessEndedError(RuntimeError):
    """A program that should be running has ended; its log says why."""

    def __init__(self, name: str, code: int, log: Path) -> None:
        tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
        super().__init__(f"{name} ended with code {code}; end of {log}:\n  " + "\n  ".join(tail))
        self.name, self.code, self.log = name, code, log


@dataclass
class Program:
    """One program of the household, restartable.

    Attributes:
        name: as shown to people, and the log file's stem.
        argv: command line.
        environment: whole environment.
        log: where its output goes (appended over restarts).
        starts: how often it was started.
        killed: ``kill`` ended it, and it was not started since.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    starts: int = 0
    killed: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Process id of the running instance."""
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it in a session of its own (a Ctrl-C on the terminal is ours to pass on)."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tethered(),  # noqa: PLW1509  nothing but two system calls
            )
        self.starts += 1
        self.killed = False

    def check(self) -> None:
        """Raise ``ProcessEndedError`` when it has ended and nobody killed it."""
        if self.process is not None and not self.killed and (code := self.process.poll()) is not None:
            raise ProcessEndedError(self.name, code, self.log)

    def kill(self) -> None:
        """SIGKILL the program itself, as a fault would; what it started is left to its own devices."""
        if self.running:
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)


class Household:
    """Every program of one main job, ended together."""

    def __init__(self, folder: Path, *, grace_s: float = 10.0) -> None:
        """Keep logs under ``folder``; give programs ``grace_s`` seconds between SIGTERM and SIGKILL."""
        self.folder = folder
        self.grace_s = grace_s
        self.mark = uuid.uuid4().hex
        self.programs: dict[str, Program] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self, name: str, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Program:
        """Start a program under a name that is not taken.

        Args:
            name: also the log file's stem.
            argv: command line; ``argv[0]`` is looked up on PATH.
            environment: additions to ours.
        """
        if name in self.programs:
            raise ValueError(f"household: {name!r} is running already; give the second one another name")
        program = Program(
            name, argv, {**os.environ, **(environment or {}), MARK: self.mark}, self.folder / f"{name}.log"
        )
        program.start()
        self.programs[name] = program
        return program

    def python(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Program:
        """Start one of our own modules with this interpreter."""
        return self.start(name, [sys.executable, "-m", module, *arguments], environment=environment)

    def end(self) -> None:
        """End everything: ask the programs, then kill whatever is left below us, until nothing is.

        An agent that is killed for being late removes nothing of what its engine shared by name: that is done here.
        """
        shared = frozenset[int]().union(*(shared_by(group) for group in {_group(each) for each in self._marked()}))
        for program in reversed(self.programs.values()):
            if program.running:
                os.kill(program.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.grace_s
        for program in self.programs.values():
            if program.process is not None:
                try:
                    program.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    program.kill()
        self._sweep()
        remove(shared)

    def _sweep(self) -> None:
        """Kill what bears our mark, in rounds: killing one may hand us its children.

        Python's resource trackers end by themselves when all others have, and remove what those shared in /dev/shm.
        """
        deadline = time.monotonic() + self.grace_s
        while (left := self._marked()) and time.monotonic() < deadline:
            doomed = [process for process in left if not _tracks(process)]
            if not doomed:
                _, doomed = psutil.wait_procs(left, timeout=_TRACKER_S)
            for process in doomed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(doomed, timeout=1.0)

    def _marked(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                # SGLang writes its processes' titles over their environment, and so over that of their heirs.
                if process.name() == HEIR or process.environ().get(MARK) == self.mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0


def _tracks(process: psutil.Process) -> bool:
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
