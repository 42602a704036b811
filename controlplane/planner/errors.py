"""Everything the planner raises; each message says what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.policy import Survivability


class PlanningError(ValueError):
    """Root: no placement was made. Nothing has changed."""


class InvalidInputError(PlanningError):
    """An argument that no plan could answer: correct the field that the message names."""


class InfeasibleError(PlanningError):
    """What was asked for cannot be had on these ranks; the message names the nearest that can.

    Attributes:
        needed: slots per layer that it takes.
        present: slots per layer that count towards it.
        nearest: the strongest survivability that is possible, None when not even one copy of each expert fits.
    """

    def __init__(self, asked: str, *, needed: int, present: int, nearest: Survivability | None, remedy: str) -> None:
        self.asked = asked
        self.needed = needed
        self.present = present
        self.nearest = nearest
        self.remedy = remedy
        super().__init__(asked)

    def __str__(self) -> str:
        return f"{self.asked} needs {self.needed} slots per layer, {self.present} present; {self.remedy}"
