"""A rank in a process of its own, driven over a socket: one word a command, descriptors beside it."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from native.cuda import CudaGroup
from tools.virtual_ranks import OK, Rig, Sizes, apply_experts, relative_error

SIZES = Sizes(ranks=3, experts=6, topk=3, copies=2, layers=1, tokens=8)


class Peer:
    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.rig = Rig(sizes=SIZES)
        self.group = CudaGroup(
            rank=rank, incarnation=10 + rank, shape=SIZES.shape(), timeout_s=30.0, hard_timeout_s=60.0, blocks=8
        )
        self.held: CudaGroup | None = None
        self.captures = 0

    def inbox(self, writer: int) -> tuple[str, list[int]]:
        return "inbox", [self.group.inbox_fd(writer)]

    def connect(self, owner: int, pid: int, fd: int) -> tuple[str, list[int]]:
        self.group.connect(owner, incarnation=10 + owner, inbox_fd=fd, pid=pid)
        return "ok", []

    def epoch(self, epoch: int, *active: int) -> tuple[str, list[int]]:
        self.group.stage(SIZES.table(epoch=epoch, active=active, incarnations=[10, 11, 12]))
        self.group.activate(epoch)
        return "ok", []

    def capture(self) -> None:
        self.batch = self.rig.batch(seed=self.rank)
        factors = self.rig.factors(self.rank)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.group.enqueue_sync()
            got = self.group.dispatch(0, self.batch.x, self.batch.ids, self.batch.weights)
            y = apply_experts(got, factors, hidden=SIZES.hidden)
            self.done = self.group.combine(y, self.batch.out, weighted=False)
        self.captures += 1

    def step(self) -> tuple[str, list[int]]:
        if self.captures == 0:
            self.capture()
        self.graph.replay()
        torch.cuda.synchronize()
        if self.done.status != OK:
            return "suspect " + " ".join(map(str, self.group.suspects)), []
        error = relative_error(self.batch.out, self.rig.reference(self.batch))
        right = error < 0.01 and int(self.done.missing.sum()) == 0
        return (f"right {self.captures}" if right else f"wrong {error}"), []

    def hold(self, owner: int, fd: int) -> tuple[str, list[int]]:
        self.held = CudaGroup(rank=0, incarnation=1, shape=SIZES.shape(), blocks=8)
        self.held.connect(owner, incarnation=10 + owner, inbox_fd=fd)
        return "ok", []

    def touch(self) -> tuple[str, list[int]]:
        assert self.held is not None
        address, size = self.held.link_address(2), self.held.native.chunk_bytes

        class Raw:
            __cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}  # noqa: RUF012

        memory = torch.as_tensor(Raw(), device="cuda")
        memory.fill_(7)
        right = int(memory.sum(dtype=torch.int64)) == 7 * size
        return ("healthy" if right else "corrupt"), []

    def health(self) -> tuple[str, list[int]]:
        a = torch.ones((256, 256), device="cuda")
        return ("healthy" if float((a @ a).sum()) == 256.0**3 else "corrupt"), []


def main(rank: int, fd: int) -> None:
    channel = socket.socket(fileno=fd)
    peer = Peer(rank)
    channel.send(b"ready")
    while True:
        data, fds, _, _ = socket.recv_fds(channel, 1 << 16, 8)
        if not data:
            return
        command, *numbers = data.decode().split()
        answer, out = getattr(peer, command)(*map(int, numbers), *fds)
        socket.send_fds(channel, [answer.encode()], out)
        for descriptor in out:
            os.close(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
