"""How long this rank waited for each peer, told to the coordinator while it runs steps: what shows a slow rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from schemas.records import ReceiveWait

if TYPE_CHECKING:
    from schemas.messages import EngineStatus, Hello
    from schemas.vocabulary import Epoch, Incarnation

EVERY_S = 5.0


class Reading(NamedTuple):
    """Where an engine was; ``at_s`` is the agent's clock."""

    at_s: float
    incarnation: Incarnation
    epoch: Epoch
    step: int


def read(hello: Hello, status: EngineStatus, *, at_s: float) -> Reading:
    """Where the engine is now."""
    return Reading(at_s, hello.incarnation, status.epoch, status.step)


def receive_wait(hello: Hello, status: EngineStatus, *, before: Reading, now: Reading) -> ReceiveWait | None:
    """The row between two readings; None across an epoch, whose waits are about other tables.

    The engine knows its mean wait per exchange; a step has one sync, and a dispatch and a combine for each layer.
    """
    seconds = now.at_s - before.at_s
    same = (before.incarnation, before.epoch) == (now.incarnation, now.epoch)
    if not same or not now.epoch or seconds <= 0 or not status.receive_wait_us:
        return None
    exchanges = (now.step - before.step) * (2 * hello.layers + 1)
    share = tuple(round(min(us * 1e-6 * exchanges / seconds, 1.0), 3) for us in status.receive_wait_us)
    return ReceiveWait(
        rank=hello.rank, incarnation=hello.incarnation, epoch=now.epoch, share=share, running=status.running
    )
