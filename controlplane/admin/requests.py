"""The bodies of requests: what each mutation may say, checked on decoding, and how it becomes an operation's fields.

``schemas/openapi.yaml`` holds the same constraints; a test derives them from these structs and compares.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from schemas.operations import OperationKind
from schemas.vocabulary import MAX_RANKS, Rank

Reason = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"\S", description="Why; shown with who and when.")]
Remark = Annotated[str, Meta(max_length=500, description="Why, if there is something to say.")]
Seconds = Annotated[float, Meta(ge=0, le=86400, description="Seconds until it must be done; 0: the policy's default.")]
Notice_s = Annotated[float, Meta(gt=0, le=86400, description="Seconds until the hardware goes.")]
RankNumber = Annotated[Rank, Meta(ge=0, lt=MAX_RANKS)]
Ranks = Annotated[tuple[RankNumber, ...], Meta(min_length=1, max_length=MAX_RANKS)]
Name = Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")]
Parameters = dict[str, str | int | float | bool | tuple[int, ...]]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all bodies: an unknown member is an error, because a misspelt one must not be ignored silently."""

    reason: Remark = ""
    deadline_s: Seconds = 0.0

    kind: ClassVar[OperationKind | None] = None
    """Set where the body, not the route, says what is asked."""

    @property
    def named_ranks(self) -> tuple[Rank, ...]:
        """The ranks that the body (rather than the path) names, each once, in order."""
        return ()

    @property
    def named_host(self) -> str:
        """The host that the body names."""
        return ""

    @property
    def parameters(self) -> Parameters:
        """``Operation.parameters``."""
        return {}


class Remarked(Body, frozen=True, kw_only=True):
    """Nothing need be said; a reason may."""


class Reasoned(Body, frozen=True, kw_only=True):
    """Takes capacity or safety away: a reason is required."""

    reason: Reason  # narrowed on purpose: from optional to required


class Replace(Reasoned, frozen=True, kw_only=True):
    """Exchange the rank for a spare one."""

    by: RankNumber

    @property
    def parameters(self) -> Parameters:
        """The spare."""
        return {"by": (self.by,)}


class Scale(Body, frozen=True, kw_only=True):
    """Keep ``target`` ranks; ``ranks`` leave first where too many are active."""

    target: Annotated[int, Meta(ge=1, le=MAX_RANKS)]
    ranks: Annotated[tuple[RankNumber, ...], Meta(max_length=MAX_RANKS)] = ()

    @property
    def named_ranks(self) -> tuple[Rank, ...]:
        """The preferred victims."""
        return tuple(sorted(set(self.ranks)))

    @property
    def parameters(self) -> Parameters:
        """The absolute target."""
        return {"target": self.target}


class Rebalance(Body, frozen=True, kw_only=True):
    """The planner's best placement for the same members; ``max_bytes`` 0 leaves the budget to the policy."""

    max_bytes: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0

    @property
    def parameters(self) -> Parameters:
        """The budget, if there is one."""
        return {"max_bytes": self.max_bytes} if self.max_bytes else {}


class Lend(Reasoned, frozen=True, kw_only=True, tag="lend", tag_field="action"):
    """Drain ``ranks`` and mark them lent to ``to``."""

    kind = OperationKind.LEND
    ranks: Ranks
    to: Name

    @property
    def named_ranks(self) -> tuple[Rank, ...]:
        """What is lent."""
        return tuple(sorted(set(self.ranks)))

    @property
    def parameters(self) -> Parameters:
        """The borrower."""
        return {"to": self.to}


class Reclaim(Body, frozen=True, kw_only=True, tag="reclaim", tag_field="action"):
    """Take ``ranks`` back from whoever borrowed them."""

    kind = OperationKind.RECLAIM
    ranks: Ranks

    @property
    def named_ranks(self) -> tuple[Rank, ...]:
        """What is taken back."""
        return tuple(sorted(set(self.ranks)))


class RankNotice(Reasoned, frozen=True, kw_only=True, tag="ranks", tag_field="scope"):
    """The platform says that ``ranks`` will be gone in ``deadline_s``."""

    deadline_s: Notice_s  # narrowed on purpose: a notice has a deadline
    ranks: Ranks

    @property
    def named_ranks(self) -> tuple[Rank, ...]:
        """What goes."""
        return tuple(sorted(set(self.ranks)))


class HostNotice(Reasoned, frozen=True, kw_only=True, tag="host", tag_field="scope"):
    """The platform says that everything on ``host`` will be gone in ``deadline_s``."""

    deadline_s: Notice_s  # narrowed on purpose: a notice has a deadline
    host: Name

    @property
    def named_host(self) -> str:
        """What goes."""
        return self.host


class Pause(Reasoned, frozen=True, kw_only=True):
    """Change membership only when an operator asks; ``losses`` true still excludes dead ranks."""

    losses: bool = False

    @property
    def parameters(self) -> Parameters:
        """Whether losses are still handled."""
        return {"losses": self.losses}


class ScaleElasticEp(msgspec.Struct, frozen=True, kw_only=True):
    """SGLang's own request; unknown members are ignored, as SGLang ignores them."""

    new_ep_size: Annotated[int, Meta(ge=1, le=MAX_RANKS)]
