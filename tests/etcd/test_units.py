"""The rules that need no server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.etcd import Delete, Get, LeaseState, Put, Txn, absent, covers, created_at, unchanged
from controlplane.etcd.lease import Proof
from controlplane.etcd.stream import SOLE_PACE, Pulse, Step
from schemas.config import EtcdConfig

CONFIG = EtcdConfig(endpoints=("http://one:2379", "http://other:2379"))


def test_a_lease_is_held_then_uncertain_then_lost_counted_from_the_sending():
    proof = Proof(sent_s=100.0, ttl_s=3.0)
    for now_s, state in [
        (100.0, LeaseState.HELD),
        (101.9, LeaseState.HELD),
        (102.1, LeaseState.UNCERTAIN),
        (102.6, LeaseState.UNCERTAIN),
        (102.8, LeaseState.LOST),
        (200.0, LeaseState.LOST),
    ]:
        assert proof.state(now_s) is state, now_s


@given(sent=st.floats(0, 1e9), ttl=st.integers(1, 3600), age=st.floats(0, 2))
def test_lost_comes_before_the_ttl_and_when_it_was_announced(sent, ttl, age):
    proof = Proof(sent_s=sent, ttl_s=ttl)
    now = sent + age * ttl
    assert proof.state(sent + ttl) is LeaseState.LOST
    if proof.lost_in(now) > 1e-3:
        assert proof.state(now) is not LeaseState.LOST


@pytest.mark.parametrize(
    ("txn", "repeatable"),
    [
        (Txn(then=(Get("k"),)), True),
        (Txn(when=(absent("k"),), then=(Put("k", b""),)), True),
        (Txn(when=(unchanged("k", 5),), then=(Put("k", b""),)), True),
        (Txn(when=(created_at("k", 5),), then=(Delete("k"),)), True),
        (Txn(when=(absent("k"),), then=(Put("k", b""), Put("other", b""))), True),
        (Txn(then=(Put("k", b""),)), False),
        (Txn(when=(created_at("leader", 5),), then=(Put("k", b""),)), False),
        (Txn(when=(created_at("k", 5),), then=(Put("k", b""),)), False),
        (Txn(when=(absent("k"),), then=(Delete("k"),)), False),
        (Txn(when=(absent("k"),), then=(Put("k", b""),), otherwise=(Put("k", b""),)), False),
    ],
)
def test_a_transaction_is_sent_again_only_if_its_own_success_would_stop_it(txn, repeatable):
    assert txn.repeatable is repeatable


def test_a_slash_makes_a_prefix():
    assert covers("/a/", "/a/b/c")
    assert not covers("/a/", "/a")
    assert covers("/a", "/a")
    assert not covers("/a", "/a/b")


def test_a_quiet_stream_is_asked_and_a_silent_one_is_confirmed():
    pulse = Pulse(CONFIG, now=0.0)
    assert pulse.step(0.29) is Step.WAIT
    assert pulse.wait(0.1) == pytest.approx(0.2)
    assert pulse.step(0.3) is Step.ASK
    pulse.asked(0.3)
    silent = 0.3 + CONFIG.silence_timeout_s
    assert pulse.step(silent - 0.01) is Step.WAIT
    assert pulse.step(silent) is Step.CONFIRM
    pulse.heard(silent)
    assert pulse.step(silent + 0.1) is Step.WAIT, "any message is a sign of life"
    assert pulse.step(silent + CONFIG.probe_interval_s) is Step.ASK


def test_where_there_is_no_other_member_to_go_to_probes_are_rare():
    sole = EtcdConfig()
    pulse = Pulse(sole, now=0.0)
    assert pulse.wait(0.0) == pytest.approx(SOLE_PACE * sole.probe_interval_s)
    assert pulse.step(SOLE_PACE * sole.probe_interval_s) is Step.ASK
    pulse.heard(4.0)
    assert pulse.step(4.0 + sole.probe_interval_s) is Step.WAIT
    assert pulse.answered(4.0, behind=True)
    assert pulse.step(4.0 + sole.probe_interval_s) is Step.ASK, "a member that lags is not left alone"


def test_the_defaults_leave_a_hung_member_within_the_contract():
    assert CONFIG.probe_interval_s + CONFIG.silence_timeout_s + CONFIG.confirm_timeout_s < 1.5
    assert CONFIG.request_timeout_s < 1.5


def test_a_member_may_lag_for_a_moment_but_not_for_long():
    pulse = Pulse(CONFIG, now=0.0)
    assert pulse.answered(0.0, behind=True)
    assert pulse.answered(0.3, behind=True)
    assert pulse.answered(0.4, behind=False)
    assert pulse.answered(0.5, behind=True), "the count begins anew"
    assert pulse.answered(0.5 + 0.9 * CONFIG.silence_timeout_s, behind=True)
    assert not pulse.answered(0.5 + 1.1 * CONFIG.silence_timeout_s, behind=True)
