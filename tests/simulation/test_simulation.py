"""A sample of seeds, the same story twice, and broken builds that must not get away with it."""

from __future__ import annotations

import logging

import pytest

from tools.simulation.broken import Broken
from tools.simulation.simulate import campaign, simulate

CAUGHT_WITHIN = 200
"""Seeds until each broken build must have been found out; a deposed leader's late write does harm in one of some 40."""


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_no_invariant_is_violated():
    for verdict in campaign(range(10_000, 10_060), what=Broken.NOTHING, jobs=2):
        assert verdict.problems == (), f"tools/simulate --seed {verdict.seed}"


def test_a_seed_tells_the_same_story_every_time():
    first, second = simulate(4711), simulate(4711)
    assert first == second
    assert first.epochs > 1


@pytest.mark.parametrize("what", [what for what in Broken if what is not Broken.NOTHING])
def test_a_broken_build_is_caught(what):
    expected = {
        Broken.UNFENCED: "invariant 3",
        Broken.SINGLE_PHASE: "invariant 4",
        Broken.SLOT_REUSE: "invariant 6",
        Broken.SLOW_UNSEEN: "has as much to do as before",
        Broken.BUSY_BLAMED: "is not slow",
    }
    for verdict in campaign(range(CAUGHT_WITHIN), what=what, jobs=2):
        if any(expected[what] in problem for problem in verdict.problems):
            return
    raise AssertionError(f"{what} was not caught within {CAUGHT_WITHIN} seeds")
