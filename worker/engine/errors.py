"""What can go wrong in an engine; every message ends with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.vocabulary import Expert, Layer, Slot, SourceTier


class EngineError(Exception):
    """Root of this package's errors."""


class SeamError(EngineError):
    """SGLang is not the version this build was made for: install the pinned one."""

    def __init__(self, target: str, difference: str) -> None:
        self.target = target
        self.difference = difference
        super().__init__(f"SGLang seam {target}: {difference}. Remedy: install sglang 0.5.23 (tools/locks)")


class UnsupportedError(EngineError):
    """The configuration or the model asks for what an elastic rank does not do."""

    def __init__(self, what: str, value: object, remedy: str) -> None:
        self.what = what
        self.value = value
        super().__init__(f"{what} = {value!r} is not supported on an elastic rank. Remedy: {remedy}")


class SettingsError(EngineError):
    """The settings file cannot be used: fix the named key."""


class LiveSlotError(EngineError):
    """A slot that the live table references was about to be written: the placement must use another one."""

    def __init__(self, layer: Layer, slot: Slot, expert: Expert) -> None:
        self.layer, self.slot, self.expert = layer, slot, expert
        super().__init__(
            f"slot {slot} of layer {layer} is in the live table and may not be overwritten with expert {expert}. "
            "Remedy: plan the new copy into an unreferenced slot, or cross to an epoch without this slot first"
        )


class SourceError(EngineError):
    """One source of one expert is of no use: the next one is tried."""

    def __init__(self, tier: SourceTier, reason: str) -> None:
        self.tier, self.reason = tier, reason
        super().__init__(f"{tier.value}: {reason}")


class NoSourceError(EngineError):
    """No source gave these experts: bring one back (peer, backup or checkpoint), then prepare again."""

    def __init__(self, failures: Sequence[tuple[Layer, Expert, str]]) -> None:
        self.failures = tuple(failures)
        shown = "; ".join(f"layer {layer} expert {expert} ({reason})" for layer, expert, reason in failures[:4])
        more = f" and {len(failures) - 4} more" if len(failures) > 4 else ""
        super().__init__(
            f"no source for {shown}{more}. Remedy: bring back a rank that holds them, a backup, or the checkpoint"
        )


class CheckpointError(EngineError):
    """The checkpoint is not one whose experts can be read one by one."""


class LinkError(EngineError):
    """A peer could not be linked in time, or refused."""


class PrepareError(EngineError):
    """An epoch cannot be prepared on this rank; the message goes to the agent."""


class StepAbandonedError(EngineError):
    """A step ended without every contribution: nothing of it may be used. Not an error of this rank."""

    def __init__(self, status: str, suspects: Sequence[int], layer: int) -> None:
        self.status, self.suspects, self.layer = status, tuple(suspects), layer
        super().__init__(f"step abandoned at layer {layer}: {status}, suspects {list(suspects)}")
