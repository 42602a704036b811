"""Ranks as processes on one device: what a killed peer leaves behind (G0). They are time-sliced; nothing is timed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

PEER = Path(__file__).parent / "peer.py"


class Peer:
    """A rank in a process of its own, on a socket that carries descriptors."""

    def __init__(self, rank):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, str(PEER), str(rank), str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        ours.settimeout(90)
        self.rank, self.socket = rank, ours

    def send(self, *words, fds=()):
        socket.send_fds(self.socket, [" ".join(map(str, words)).encode()], list(fds))
        for fd in fds:
            os.close(fd)

    def receive(self):
        data, fds, _, _ = socket.recv_fds(self.socket, 1 << 16, 8)
        assert data, f"rank {self.rank} ended: {self.process.poll()}"
        return data.decode().split(), fds

    def ask(self, *words, fds=()):
        self.send(*words, fds=fds)
        return self.receive()

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)
        self.socket.close()


@pytest.fixture
def peers(device):
    started = [Peer(rank) for rank in range(3)]
    try:
        for peer in started:
            assert peer.receive()[0] == ["ready"]
        link(started)
        yield started
    finally:
        for peer in started:
            peer.stop()


def link(peers):
    for owner in peers:
        for writer in peers:
            if writer is owner:
                continue
            _, fds = owner.ask("inbox", writer.rank)
            assert writer.ask("connect", owner.rank, owner.process.pid, fds=fds)[0] == ["ok"]


def enter(peers, epoch):
    active = [peer.rank for peer in peers]
    for peer in peers:
        assert peer.ask("epoch", epoch, *active)[0] == ["ok"]


def step(peers):
    for peer in peers:
        peer.send("step")
    return {peer.rank: peer.receive()[0] for peer in peers}


def test_survivors_stay_healthy_when_a_process_is_killed(peers):
    enter(peers, 1)
    assert {words[0] for words in step(peers).values()} == {"right"}
    survivors, victim = peers[:2], peers[2]
    for peer in survivors:
        peer.send("step")
    time.sleep(0.5)  # both wait in the sync for the third
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait(timeout=30)
    for peer in survivors:
        words, _ = peer.receive()
        assert words[:2] == ["suspect", "2"], words
        assert peer.ask("health")[0] == ["healthy"]  # an illegal access would have broken the context for good
    enter(survivors, 2)
    for _ in range(5):
        assert {tuple(words) for words in step(survivors).values()} == {("right", "1")}  # one capture for ever
    for peer in survivors:
        assert peer.ask("health")[0] == ["healthy"]


def test_a_memory_exporter_that_is_killed_leaves_its_importers_mapping_usable(peers):
    _, fds = peers[2].ask("inbox", 0)
    assert peers[0].ask("hold", 2, fds=fds)[0] == ["ok"]
    peers[2].process.kill()
    peers[2].process.wait(timeout=30)
    for _ in range(3):
        assert peers[0].ask("touch")[0] == ["healthy"]
