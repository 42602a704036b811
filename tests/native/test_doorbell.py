"""The doorbell of a rank on a device: what makes an idle rank take part in a step, once."""

import os
import select

import pytest

from native.cuda.doorbell import Doorbell, ring

MEMBERS = frozenset({1, 2})


@pytest.fixture
def bell():
    made = Doorbell()
    yield made
    made.close()


def readable(bell):
    return bool(select.select([bell.fd], [], [], 0)[0])


def test_a_peer_that_begins_wakes_and_is_seen(bell):
    assert not readable(bell)
    assert not bell.arrived(epoch=3, sync=7, members=MEMBERS)
    ring(bell.fd, source=1, epoch=3, sync=7)
    assert readable(bell)
    assert bell.arrived(epoch=3, sync=7, members=MEMBERS)
    assert not readable(bell)
    assert bell.arrived(epoch=3, sync=7, members=MEMBERS)  # until it has taken part


def test_two_peers_that_ring_for_one_step_make_one_step(bell):
    ring(bell.fd, source=1, epoch=3, sync=7)
    assert bell.arrived(epoch=3, sync=7, members=MEMBERS)
    ring(bell.fd, source=2, epoch=3, sync=7)  # late: the step is over here
    assert not bell.arrived(epoch=3, sync=8, members=MEMBERS)
    assert not readable(bell)


def test_a_peer_in_a_later_epoch_is_seen_and_one_of_an_earlier_is_not(bell):
    ring(bell.fd, source=1, epoch=2, sync=90)
    assert not bell.arrived(epoch=3, sync=0, members=MEMBERS)
    ring(bell.fd, source=1, epoch=4, sync=0)
    assert bell.arrived(epoch=3, sync=5, members=MEMBERS)


def test_strangers_and_former_processes_do_not_count(bell):
    ring(bell.fd, source=9, epoch=3, sync=7)
    assert readable(bell)
    assert not bell.arrived(epoch=3, sync=7, members=MEMBERS)
    ring(bell.fd, source=1, epoch=3, sync=7)
    assert bell.arrived(epoch=3, sync=7, members=MEMBERS)
    bell.forget(1)
    assert not bell.arrived(epoch=3, sync=7, members=MEMBERS)


def test_a_full_bell_holds_nobody_up(bell):
    for sync in range(10_000):
        ring(bell.fd, source=1, epoch=1, sync=sync)
    assert bell.arrived(epoch=1, sync=1000, members=MEMBERS)


def test_a_bell_whose_owner_is_gone_holds_nobody_up():
    made = Doorbell()
    theirs = os.dup(made.fd)
    made.close()
    ring(theirs, source=0, epoch=1, sync=1)
    os.close(theirs)
