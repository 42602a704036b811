"""Negative controls of ``test_machine``: each safeguard taken out of the core has to be noticed by it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from controlplane.coordinator import beginning, changes, membership, state, under_way
from controlplane.coordinator.holdings import holdings, widened
from schemas.records import Ack
from tests.coordinator.test_machine import Machine

WITHIN = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    verbosity=Verbosity.quiet,
    suppress_health_check=list(HealthCheck),
)


def slots_in_use_are_written(patch):
    """The whole way to a placement in one flip."""

    def at_once(*, live, target, members):
        del members
        return widened(target, rows=live.max_ranks, slots=live.slots_per_rank)

    patch.setattr(beginning, "toward", at_once)


def uncertain_slots_are_trusted(patch):
    """What was asked to be loaded counts as loaded."""

    def trusting(record, *, placements, acks):
        changing = record.preparing or record.committed
        said = {
            (changing.epoch, member.rank): Ack(
                rank=member.rank, incarnation=member.incarnation, epoch=changing.epoch, prepared=True
            )
            for member in (*record.committed.members, *changing.members)
        }
        return holdings(record, placements=placements, acks={**acks, **said})

    for module in (membership, changes):
        patch.setattr(module, "holdings", trusting)


def nobody_has_to_be_prepared(patch):
    """A planned version is committed as soon as it is announced."""
    patch.setattr(under_way, "prepared", lambda version, ranks, acks: set(ranks))


def the_excluded_return(patch):
    """A process that was excluded may be a member again."""
    obstacle = membership.obstacle

    def forgiving(known, registration):
        view = msgspec.structs.replace(known.view(registration.rank), fenced=-1)
        views = {**known.views, view.rank: view}
        status = msgspec.structs.replace(known.status, ranks=tuple(views[rank] for rank in sorted(views)))
        return obstacle(replace(known, status=status), registration)

    patch.setattr(membership, "obstacle", forgiving)


def numbers_are_used_again(patch):
    """The next epoch is the one after the committed, whatever was announced meanwhile."""

    def reused(known):
        return known.record.committed.epoch + 1 if known.record else 1

    patch.setattr(state.State, "next_epoch", property(reused))


def deadlines_are_named_to_nobody(patch):
    """The clock is looked at, but nobody is told when to look again."""
    patch.setattr(state.State, "reached", lambda known, at: known.now >= at)


BROKEN = (
    slots_in_use_are_written,
    uncertain_slots_are_trusted,
    nobody_has_to_be_prepared,
    the_excluded_return,
    numbers_are_used_again,
    deadlines_are_named_to_nobody,
)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_core_without_one_safeguard_is_found_out(broken, monkeypatch):
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=WITHIN)
