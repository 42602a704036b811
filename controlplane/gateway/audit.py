"""The audit log: one JSON line when a request is accepted, and exactly one when it ends."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from controlplane.gateway.errors import GatewayError
    from controlplane.gateway.generation import Generation
    from controlplane.gateway.job import Job


class Ending(StrEnum):
    """How an accepted request ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    """The client got the error that the line names."""
    ABANDONED = "abandoned"
    """The client left."""


@dataclass
class Entry:
    """One accepted request, until ``Audit.end`` is called with it."""

    job: Job
    accepted: float
    """Monotonic seconds."""
    first_token: float = 0.0
    last_token: float = 0.0
    longest_gap_s: float = 0.0
    ended: bool = False

    def token(self, now: float) -> None:
        """A token reached the client at ``now``."""
        if self.last_token:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_token)
        else:
            self.first_token = now
        self.last_token = now


@dataclass
class Audit:
    """Appends lines to a file; each is one write, so that several gateways may share the file.

    Attributes:
        path: the file; None for standard output.
    """

    path: Path | None = None
    open_entries: int = 0
    _descriptor: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.path is None:
            self._descriptor = sys.stdout.fileno()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def accept(self, job: Job, *, now: float) -> Entry:
        """Note that ``job`` will be answered."""
        self.open_entries += 1
        self._write({"event": "accepted", "id": job.id, "route": job.dialect, "stream": job.stream})
        return Entry(job, now)

    def end(
        self,
        entry: Entry,
        ending: Ending,
        generations: Sequence[Generation],
        *,
        now: float,
        error: GatewayError | None = None,
    ) -> None:
        """Note how it ended; a second call for the same entry changes nothing."""
        if entry.ended:
            return
        entry.ended = True
        self.open_entries -= 1
        line: dict[str, Any] = {
            "event": "ended",
            "id": entry.job.id,
            "route": entry.job.dialect,
            "ending": ending,
            "prompt_tokens": sum(len(spec.prompt) for spec in entry.job.specs),
            "completion_tokens": sum(len(each.tokens) for each in generations),
            "resumed": sum(each.resumed for each in generations),
            "retried": sum(each.retried for each in generations),
            "inexact": sorted({each.inexact for each in generations if each.inexact}),
            "missing_experts": max((each.missing for each in generations), default=0),
            "ranks": [each.ranks for each in generations],
            "seconds": round(now - entry.accepted, 4),
            "longest_gap_ms": round(entry.longest_gap_s * 1e3, 1),
        }
        if error is not None:
            line["error"] = {"code": error.code, "status": error.status, "message": error.message}
        self._write(line)

    def close(self) -> None:
        """Close the file."""
        if self.path is not None:
            os.close(self._descriptor)

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._descriptor, msgspec.json.encode({"unix_ns": time.time_ns(), **line}) + b"\n")
