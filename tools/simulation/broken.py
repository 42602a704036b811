"""Deliberately broken builds: the simulation must catch each, or its silence means nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import msgspec

from controlplane.coordinator import changes, health, membership, shell, slowness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlplane.coordinator.state import Pace, State, Write
    from controlplane.etcd import Etcd, Leadership, Txn, TxnResult
    from schemas.records import Registration


class Broken(StrEnum):
    """What is broken."""

    NOTHING = "nothing"
    UNFENCED = "unfenced"
    """Writes compare neither the fence nor what they are based on, so a deposed leader's late write lands."""
    SINGLE_PHASE = "single-phase"
    """A planned change is committed without having been prepared."""
    SLOT_REUSE = "slot-reuse"
    """A process that was excluded may be a member again: its rank is used again without fencing it."""
    SLOW_UNSEEN = "slow-unseen"
    """Whom all wait for is not noticed."""
    BUSY_BLAMED = "busy-blamed"
    """Who has more requests than the others counts as slow."""


async def _unfenced(etcd: Etcd, leadership: Leadership, txn: Txn) -> TxnResult:
    del leadership
    return await etcd.txn(replace(txn, when=(), otherwise=()))


_prepare = changes.prepare
_obstacle = membership.obstacle


def _committed_at_once(*arguments: Any, **more: Any) -> Write:
    write = _prepare(*arguments, **more)
    record = write.record
    if record is None or record.preparing is None:
        return write
    flipped = msgspec.structs.replace(record, committed=record.preparing, preparing=None)
    return replace(write, record=flipped)


def _forgiving(state: State, registration: Registration) -> str:
    view = msgspec.structs.replace(state.view(registration.rank), fenced=-1)
    views = {**state.views, view.rank: view}
    status = msgspec.structs.replace(state.status, ranks=tuple(views[rank] for rank in sorted(views)))
    return _obstacle(replace(state, status=status), registration)


def _content(pace: Pace, *, share: float) -> str:
    del pace, share
    return ""


@contextmanager
def broken(what: Broken) -> Iterator[None]:
    """Run a block with one safeguard taken out."""
    match what:
        case Broken.NOTHING:
            yield
        case Broken.UNFENCED:
            with patch.object(shell, "fenced", _unfenced):
                yield
        case Broken.SINGLE_PHASE:
            with patch.object(changes, "prepare", _committed_at_once):
                yield
        case Broken.SLOT_REUSE:
            with patch.object(membership, "obstacle", _forgiving):
                yield
        case Broken.SLOW_UNSEEN:
            with patch.object(health, "complaint", _content):
                yield
        case Broken.BUSY_BLAMED:
            with patch.object(slowness, "BUSIER", float("inf")):
                yield
