"""What a scenario is, which instance it needs, and which scenarios can share one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tools.mainjob.scene import Scene

    Run: TypeAlias = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The instance that a scenario needs; scenarios with equal needs share one.

    Attributes:
        etcd: members of etcd.
        transfer_s: a returning rank's load takes at least this long, 0 for as long as it takes.
    """

    etcd: int = 1
    transfer_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One thing that goes wrong.

    Attributes:
        name: as typed.
        run: makes it happen and follows it to the end; raises ``AssertionError`` where the system did not do its part.
        story: what happens, in a line.
        needs: of the instance.
        two_gateways: clients know two, and try again at the other when one is killed.
        longest_wait_s: longest that any client may wait between two tokens of an answer, from the first fault to the
            end: the recovery's bound. Clients are not asked to notice nothing here (``tools/bench recovery`` measures
            what they notice): this says that nobody ever waits for a time-out of something else.
    """

    name: str
    run: Run
    story: str
    needs: Needs
    two_gateways: bool
    longest_wait_s: float


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *, etcd: int = 1, transfer_s: float = 0.0, two_gateways: bool = False, longest_wait_s: float = 2.0
) -> Callable[[Run], Run]:
    """Make a scenario known by its function's name."""

    def enter(run: Run) -> Run:
        name = run.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(
            name=name,
            run=run,
            story=(run.__doc__ or "").strip(),
            needs=Needs(etcd=etcd, transfer_s=transfer_s),
            two_gateways=two_gateways,
            longest_wait_s=longest_wait_s,
        )
        return run

    return enter


def grouped(names: Iterable[str]) -> dict[Needs, list[Scenario]]:
    """Scenarios by the instance they share, in the order in which they were named."""
    found: dict[Needs, list[Scenario]] = {}
    for name in names:
        found.setdefault(SCENARIOS[name].needs, []).append(SCENARIOS[name])
    return found
