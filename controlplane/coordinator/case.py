"""One decision's view of the instance, and the two answers of a rule that are no write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlplane.coordinator.blame import Verdict
    from controlplane.coordinator.planning import Planner
    from controlplane.coordinator.state import State


@dataclass(frozen=True)
class Case:
    """The state, the verdict on its members, and who plans. A rule that answers with a state goes on with that one."""

    state: State
    verdict: Verdict
    planner: Planner

    @property
    def automatic(self) -> bool:
        """Whether changes are made that no operator asked for."""
        return not self.state.status.paused


@dataclass(frozen=True)
class Wait:
    """Nothing to write now, and no later rule may act: a change is under way."""

    state: State
    why: str
