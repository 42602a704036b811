"""Every rank begins every forward together: the step sync, crossing into epochs, and what follows a broken step.

One forward step is one ``sync`` and then, per MoE layer, the same number of dispatch rounds on every active rank. The
rows of a sync are the same everywhere, so every decision taken from them is the same everywhere.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from native import _native
from schemas.messages import Activated, Fault
from schemas.records import Suspicion
from schemas.vocabulary import Evidence
from worker.engine.errors import StepAbandonedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from native.plane import DataPlane, Row
    from schemas.messages import ToAgent
    from schemas.vocabulary import Rank
    from worker.engine.membership import Membership

log = logging.getLogger("eep.engine")

_EVIDENCE = {
    _native.Evidence.DEAD: Evidence.DEAD,
    _native.Evidence.SILENT: Evidence.SILENT,
    _native.Evidence.SLOW: Evidence.SLOW,
}
"""What a rank saw itself. Gossip is left out: one accuser's word, passed on by all, must not look like a quorum."""
_SAY_AGAIN_S = 5.0
_LOOK_S = 0.2
_LOOK_SOON_S = 0.002
_SOON_S = 0.05
"""After a broken step: what else died of the same cause is seen within this time, mostly before the leader decides."""


@dataclass
class Lockstep:
    """The stepping thread's protocol.

    Attributes:
        max_tokens: rows of one dispatch round.
        strict: run nothing while the epoch has missing experts.
        tell: hands a message to the agent; does not block.
        bury: told of each peer that was seen dying.
        rounds: dispatch rounds per layer of the step under way.
        steps: steps begun.
    """

    group: DataPlane
    control: _native.ControlBlock
    membership: Membership
    max_tokens: int
    strict: bool
    tell: Callable[[ToAgent], None]
    bury: Callable[[Rank], None]
    rounds: int = 0
    steps: int = 0
    abandoned_steps: int = 0
    _reported: int = field(default=0)
    _ahead_since: float = 0.0
    """When this rank went on ahead of a decision that it has not told yet; 0 when it has."""

    def wanted(self) -> bool:
        """Whether a rank without tokens has to take part now: a peer began, or an epoch is to be crossed into."""
        membership = self.membership
        self._tell_decided()
        if membership.crossing or membership.called_off:
            return True
        return membership.current.included and self.group.sync_arrived()

    def enter(self, tokens: int) -> int:
        """Begin a step with ``tokens`` rows of our own; the rounds that every layer has, 0 when nobody has a token.

        Returns only under an epoch that counts on this rank and has all experts (or may lack some, in best effort).
        A rank that left its instance, and has nothing to run, returns 0.
        """
        self._tell_decided()
        while True:
            if not self._may_run():
                if tokens == 0 and self._may_rest():
                    return 0
                self._wait_for_epoch()
                continue
            row = _native.SyncRow(
                tokens=tokens, prepared_epoch=self.membership.prepared, committed_epoch=self.membership.committed
            )
            result = self.group.sync(row)
            if result.status != _native.Status.OK:
                self.abandon(StepAbandonedError(result.status.name, result.suspects, -1))
                continue
            if self._flip(result.rows):
                continue
            self.rounds = -(-max(row.tokens for row in result.rows) // self.max_tokens)
            self.steps += self.rounds > 0
            return self.rounds

    def abandon(self, failure: StepAbandonedError) -> None:
        """A step broke: say what was seen; go on without who is gone, or else wait for the leader's next epoch."""
        self.abandoned_steps += 1
        log.warning("%s", failure)
        self._report()
        if not self._go_on_without(failure.suspects):
            self._wait_for_epoch()

    def hold(self) -> None:
        """A step has run: return when the version that it ran under is decided.

        Raises:
            StepAbandonedError: something else was decided, and the step is to be run again.
        """
        membership = self.membership
        while not membership.current.decided:
            if membership.overruled:
                raise StepAbandonedError("OVERRULED", (), -1)
            if not membership.wait_verdict(timeout_s=_SAY_AGAIN_S):
                log.warning("a step made without a lost rank waits for the epoch after %s", self._why())
        self._tell_decided()

    # --- epochs -------------------------------------------------------------------------------------------------------

    def _may_run(self) -> bool:
        view = self.membership.current
        return view.included and not self.membership.called_off and not (self.strict and view.missing)

    def _may_rest(self) -> bool:
        """Nothing to run, and nothing to cross into: idle without an epoch, or with experts missing."""
        return not self.membership.crossing and not self.membership.called_off

    def _go_on_without(self, suspects: Sequence[Rank]) -> bool:
        """Whether the broken step can be run again now: one rank is gone, and every expert has a copy elsewhere."""
        if self.group.look_again():
            self._report()
            return False
        if len(suspects) != 1 or not self.membership.go_on_without(suspects[0]):
            return False
        self._ahead_since = time.monotonic()
        return True

    def _tell_decided(self) -> None:
        """Tell once that what this rank went on with is an epoch now."""
        if self._ahead_since and self.membership.current.decided:
            self._crossed(self._ahead_since)

    def _flip(self, rows: Sequence[Row]) -> bool:
        """Cross into a committed epoch that every rank of this sync has prepared; True when we must sync again."""
        target = max(row.committed_epoch for row in rows)
        if target <= self.membership.current.epoch or any(row.prepared_epoch < target for row in rows):
            return False
        self.membership.commit_known(target)
        if self.membership.cross(target):
            self._crossed(time.monotonic())
        else:  # a newer epoch with an abort cut took its place here; the others will hear of that one too
            self._wait_for_epoch()
        return True

    def _wait_for_epoch(self) -> None:
        """Park until a newer epoch is staged and committed, and cross into it.

        It has no deadline of its own: SGLang's watchdog is set far above, and what else ends it is the agent, which
        ends the process. Every few seconds it says what it waits for.
        """
        began = time.monotonic()
        said = began
        self.membership.park()
        while True:
            soon = time.monotonic() - began < _SOON_S
            if self.membership.wait_crossing(timeout_s=_LOOK_SOON_S if soon else _LOOK_S):
                staged = self.membership.staged
                if staged is not None and self.membership.cross(staged.epoch):
                    self._crossed(began)
                    return
            if self._ahead_since and self.membership.current.decided:
                self._tell_decided()
                self._reported = 0  # told of the epoch before, what broke meanwhile may count for nothing in this one
                self._report()
            if self.group.look_again():
                self._report()
            if time.monotonic() - said > _SAY_AGAIN_S:
                said = time.monotonic()
                log.warning("waiting %.0f s for an epoch after %s", said - began, self._why())

    def _why(self) -> str:
        view = self.membership.current
        if view.missing:
            shown = ", ".join(f"layer {layer} expert {expert}" for layer, expert in view.missing[:8])
            return f"{view.epoch}: {len(view.missing)} experts have no live copy ({shown})"
        if view.epoch and not view.included:
            return f"{view.epoch}, which is without this rank"
        return str(view.epoch)

    def _crossed(self, began: float) -> None:
        view, self._ahead_since = self.membership.current, 0.0
        self.control.epoch = view.epoch
        waited_ms = (time.monotonic() - began) * 1e3
        log.info("epoch %d: %d ranks, waited %.1f ms", view.epoch, len(view.members), waited_ms)
        if view.missing:
            log.error("stopped sampling under epoch %s", self._why())
        self.tell(Activated(epoch=view.epoch, step=self.steps, waited_ms=waited_ms, unix_ns=time.time_ns()))

    # --- evidence -----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        word = self.control.fault()
        if word is None or word.serial <= self._reported:
            return
        self._reported = word.serial
        for rank, evidence in zip(word.suspects, word.evidence, strict=True):
            if evidence == _native.Evidence.DEAD:
                self.bury(rank)
        view = self.membership.current
        incarnations = dict(view.identities)
        waits = self.control.receive_wait_us()[: self.group.shape.max_ranks]
        self.tell(
            Fault(
                epoch=view.epoch,
                step=word.step,
                suspicions=tuple(
                    Suspicion(rank, incarnations.get(rank, 0), _EVIDENCE[evidence], f"layer {word.layer}")
                    for rank, evidence in zip(word.suspects, word.evidence, strict=True)
                    if evidence in _EVIDENCE
                ),
                receive_wait_us=tuple(map(round, waits)),
                detected_unix_ns=word.unix_ns,
            )
        )
