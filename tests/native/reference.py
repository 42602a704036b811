"""What dispatch and combine must give, in plain numpy: no transport, no threads, one table, all ranks at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from native import _native

_MASK = (1 << 64) - 1


def to_bfloat16(values):
    """float32 → bfloat16 bits, rounded to nearest even."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits):
    """bfloat16 bits → float32."""
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)


def encode(values, dtype):
    """float32 → what the group's arrays hold."""
    return values.astype(np.float32) if dtype == _native.DType.FLOAT32 else to_bfloat16(values)


def decode(values, dtype):
    """What the group's arrays hold → float32."""
    return np.asarray(values) if dtype == _native.DType.FLOAT32 else from_bfloat16(values)


def pair_hash(source, token, k, expert):
    """The documented weighted hash: SplitMix64's finaliser over the pair's identity."""
    z = (source << 48) ^ (expert << 32) ^ (token << 8) ^ k
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 32


@dataclass(frozen=True)
class Routing:
    """``replicas[layer][expert]``: (rank, slot, weight) triples."""

    max_ranks: int
    replicas: list[list[list[tuple[int, int, int]]]]

    def live(self, active):
        """Only the replicas on active ranks."""
        return Routing(
            self.max_ranks, [[[r for r in expert if r[0] in active] for expert in layer] for layer in self.replicas]
        )

    def table(self, *, epoch, incarnations):
        """As the native table; ``incarnations``: rank → incarnation of the active ranks."""
        flat = [replica for layer in self.replicas for expert in layer for replica in expert]
        counts = np.array([[len(expert) for expert in layer] for layer in self.replicas])
        ends = np.cumsum(counts).reshape(counts.shape)
        starts = np.concatenate(([0], ends[:-1, -1]))
        columns = np.array(flat, dtype=np.uint16).reshape(-1, 3)
        return _native.Table(
            epoch=epoch,
            active=sorted(incarnations),
            incarnations=[incarnations.get(rank, 0) for rank in range(self.max_ranks)],
            offsets=np.column_stack([starts, ends]).astype(np.int32),
            ranks=columns[:, 0],
            slots=columns[:, 1],
            weights=columns[:, 2],
        )

    def choose(self, layer, source, token, k, expert):
        """(rank, slot) of one routed pair, or None when the expert has no copy."""
        replicas = self.replicas[layer][expert]
        if not replicas:
            return None
        shares = np.cumsum([weight for _, _, weight in replicas])
        point = (pair_hash(source, token, k, expert) * int(shares[-1])) >> 32
        return replicas[int(np.searchsorted(shares, point, side="right"))][:2]


def expert_output(rows, rank, slot):
    """A stand-in for an expert: different in every slot of every rank."""
    factor = np.float32(1) + np.float32(0.25) * np.float32(slot) + np.float32(0.125) * np.float32(rank)
    return rows * factor + (np.float32(slot) - np.float32(rank))


def combine(routing, *, layer, source, x, ids, weights, dtype):
    """What ``combine`` must leave in ``out`` for the tokens of one rank, bit for bit, and the missing counts.

    Each rank's weighted sum is made in float32 in the order of k, rounded to the group's type and sent back; the sums
    are added in float32 in rank order and rounded again.
    """
    out = np.zeros(x.shape, dtype=np.float32)
    missing = np.zeros(len(x), dtype=np.uint8)
    for token in range(len(x)):
        partial = {}
        for k, expert in enumerate(ids[token]):
            if expert < 0:
                continue
            place = routing.choose(layer, source, token, k, int(expert))
            if place is None:
                missing[token] += 1
                continue
            rank, slot = place
            y = decode(encode(expert_output(x[token], rank, slot), dtype), dtype)
            term = np.float32(weights[token, k]) * y
            partial[rank] = term if rank not in partial else partial[rank] + term
        for i, rank in enumerate(sorted(partial)):
            part = decode(encode(partial[rank], dtype), dtype)
            out[token] = part if i == 0 else out[token] + part
    return decode(encode(out, dtype), dtype), missing
