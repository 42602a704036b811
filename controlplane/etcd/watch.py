"""List, then watch, for as long as the owner lives: no event lost, none twice, none out of order.

Rules, each of which a library got wrong: resume from the last *delivered* event's revision + 1, never from a header
(etcd before 3.4.25 and 3.5.8 sends progress ahead of events, etcd issue 15220); deliver all events of one revision
together; after a compaction list again and deliver the difference.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlplane.etcd.errors import CompactedError, UnavailableError
from controlplane.etcd.interface import LoopClock
from controlplane.etcd.values import Event, EventKind, KeyValue, Listing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from controlplane.etcd.interface import Clock, Etcd

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch delivers: everything that happened at ``revision``.

    The first one of a watch that lists is the listing itself, as puts. ``relisted`` marks one that stands for several
    revisions: the listing, or the difference after a compaction.
    """

    revision: int
    events: tuple[Event, ...]
    relisted: bool = False


class Watch:
    """A prefix (or a key) and its changes; iterate it once.

    ``items`` mirrors the prefix as of the last change that was delivered. With ``after`` there is no listing: changes
    follow from that revision on, and ``CompactedError`` is raised if it is gone.
    """

    def __init__(self, etcd: Etcd, key: str, *, after: int | None = None, clock: Clock | None = None) -> None:
        self._etcd = etcd
        self._key = key
        self._clock = clock or LoopClock()
        self._mirrors = after is None
        self._items: dict[str, KeyValue] = {}
        self.revision = after or 0
        """Everything up to here was delivered."""
        self.confirmed_at: float | None = None
        """When (clock) etcd last showed a sign of life; None before the first."""
        self.trouble = ""
        """Why the watch is not connected now, empty if it is."""

    @property
    def items(self) -> Mapping[str, KeyValue]:
        """The prefix as of ``revision``."""
        return self._items

    def __aiter__(self) -> AsyncIterator[Change]:
        return self.changes()

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Deliver changes for ever; failures of etcd are waited out, and shown in ``trouble``.

        Raises:
            CompactedError: only with ``after``.
            EtcdError: what time does not heal (permission, authentication, wrong cluster).
        """
        pause = _FIRST_PAUSE_S
        listed = not self._mirrors
        while True:
            try:
                if not listed:
                    change = self._relist(await self._etcd.get(self._key))
                    listed = True
                    yield change
                async with aclosing(self._etcd.stream(self._key, start=self.revision + 1)) as batches:
                    async for batch in batches:
                        self._alive()
                        pause = _FIRST_PAUSE_S
                        if batch.events and batch.revision > self.revision:
                            yield self._apply(Change(batch.revision, batch.events))
            except CompactedError:
                if not self._mirrors:
                    raise
                listed = False
            except UnavailableError as error:
                self.trouble = str(error)
                await self._clock.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _alive(self) -> None:
        self.confirmed_at = self._clock.now()
        self.trouble = ""

    def _apply(self, change: Change) -> Change:
        self.revision = change.revision
        if self._mirrors:
            for event in change.events:
                if event.kind is EventKind.PUT:
                    self._items[event.key] = event.item
                else:
                    self._items.pop(event.key, None)
        return change

    def _relist(self, listing: Listing) -> Change:
        """What happened between ``revision`` and the listing, without the steps in between."""
        self._alive()
        found = {item.key: item for item in listing}
        gone = [
            Event(EventKind.DELETE, KeyValue(key, b"", 0, listing.revision, 0))
            for key in self._items
            if key not in found
        ]
        new = [Event(EventKind.PUT, item) for item in listing if self._items.get(item.key) != item]
        new.sort(key=lambda event: event.item.mod_revision)
        return self._apply(Change(listing.revision, (*gone, *new), relisted=True))
