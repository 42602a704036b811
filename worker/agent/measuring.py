"""What an engine measures and its agent passes on to the leader: each kind at its own pace, and only what is news."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.agent import loads, waits

if TYPE_CHECKING:
    from schemas.messages import EngineStatus, Hello
    from schemas.records import ExpertLoad, ReceiveWait

ASK_EVERY_S = min(loads.EVERY_S, waits.EVERY_S)
_EARLY = 0.9
"""Part of a period after which an answer counts as the period's: answers come a little early or late."""


class Measurements:
    """Remembers what was last told; ``taken`` says what to publish now."""

    def __init__(self) -> None:
        self._loads_told_s = float("-inf")
        self._reading: waits.Reading | None = None
        self._row: ReceiveWait | None = None

    def taken(self, hello: Hello, status: EngineStatus, *, now_s: float) -> list[ExpertLoad | ReceiveWait]:
        """Records that a status gives rise to; statuses may come more often than records are wanted."""
        found: list[ExpertLoad | ReceiveWait] = []
        load = loads.expert_load(hello, status)
        if load is not None and now_s - self._loads_told_s >= _EARLY * loads.EVERY_S:
            self._loads_told_s = now_s
            found.append(load)
        row = self._waited(hello, status, now_s)
        if row is not None:
            found.append(row)
        return found

    def _waited(self, hello: Hello, status: EngineStatus, now_s: float) -> ReceiveWait | None:
        before, now = self._reading, waits.read(hello, status, at_s=now_s)
        if before is not None and before.at_s <= now_s < before.at_s + _EARLY * waits.EVERY_S:
            return None
        self._reading = now
        row = before and waits.receive_wait(hello, status, before=before, now=now)
        if row is None or (row == self._row and not any(row.share)):
            return None  # an idle engine says so once
        self._row = row
        return row
