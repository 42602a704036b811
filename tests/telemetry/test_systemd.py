"""Notifications arrive at a real datagram socket, as systemd would see them."""

from __future__ import annotations

import os
import socket

import pytest

from controlplane.telemetry import Notifier


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(5)
        yield channel


def received(channel, count):
    return [channel.recv(4096).decode() for _ in range(count)]


def test_ready_status_watchdog_and_stopping_are_sent(listener):
    notifier = Notifier({"NOTIFY_SOCKET": listener.getsockname()})
    notifier.ready()
    notifier.status("leader epoch 7, 31/32 ranks")
    notifier.status("leader epoch 7, 31/32 ranks")
    notifier.alive()
    notifier.stopping()
    assert notifier.heard
    assert received(listener, 4) == ["READY=1", "STATUS=leader epoch 7, 31/32 ranks", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_socket_is_reached():
    name = f"eep-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name)
        channel.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert received(channel, 1) == ["READY=1"]


def test_a_full_queue_does_not_block_the_loop(listener):
    notifier = Notifier({"NOTIFY_SOCKET": listener.getsockname()})
    for _ in range(10_000):
        notifier.alive()


def test_without_systemd_nothing_happens():
    notifier = Notifier({})
    notifier.ready()
    assert notifier.watchdog_interval_s is None
    assert not notifier.heard


def test_watchdog_is_fed_three_times_a_period_by_its_owner_only():
    usec = {"WATCHDOG_USEC": "9000000"}
    assert Notifier(usec).watchdog_interval_s == 3.0
    assert Notifier({**usec, "WATCHDOG_PID": str(os.getpid())}).watchdog_interval_s == 3.0
    assert Notifier({**usec, "WATCHDOG_PID": str(os.getpid() + 1)}).watchdog_interval_s is None
