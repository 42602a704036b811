"""Functions that run inside the ranks of a fleet (they are sent by name, so they live in a module)."""

from __future__ import annotations

import time

import numpy as np

from native import _native
from tests.native import reference


def stage(seat, routing, epoch, incarnations):
    seat.group.stage(routing.table(epoch=epoch, incarnations=incarnations))


def activate(seat, epoch):
    seat.group.activate(epoch)


def sync(seat, tokens, **fields):
    """(status, rows as tuples, suspects, seconds)."""
    began = time.monotonic()
    result = seat.group.sync(_native.SyncRow(tokens=tokens, **fields))
    rows = [(row.rank, row.tokens, row.prepared_epoch, row.committed_epoch, row.user) for row in result.rows]
    return result.status, rows, result.suspects, time.monotonic() - began


def batch(seat, seed, tokens, k):
    """Tokens of this rank: the same for the same seed, different on every rank."""
    shape = seat.group.shape
    random = np.random.default_rng([seed, seat.rank])
    x = reference.decode(reference.encode(random.standard_normal((tokens, shape.hidden)), shape.dtype), shape.dtype)
    ids = np.argsort(random.random((tokens, shape.n_experts)), axis=1)[:, :k].astype(np.int32)
    weights = random.random((tokens, k)).astype(np.float32)
    return x, ids, weights


def run_experts(seat, dispatched, *, weighted):
    """Outputs of this rank's stand-in experts for what arrived."""
    dtype = seat.group.shape.dtype
    rows = reference.decode(np.asarray(dispatched.rows), dtype)
    slots = np.asarray(dispatched.slots)
    y = reference.expert_output(rows, seat.rank, slots[:, None])
    y = reference.decode(reference.encode(y, dtype), dtype)
    if weighted:
        y = y * np.asarray(dispatched.weights)[:, None]
    return reference.encode(y, dtype)


def one_round(seat, layer, x, ids, weights, *, weighted=False):
    """One dispatch and combine; (status, out as float32, missing, suspects)."""
    dtype = seat.group.shape.dtype
    dispatched = seat.group.dispatch(layer, reference.encode(x, dtype), ids, weights)
    out = np.zeros(x.shape, dtype=np.float32 if dtype == _native.DType.FLOAT32 else np.uint16)
    if dispatched.status != _native.Status.OK:
        return dispatched.status, None, None, dispatched.suspects
    combined = seat.group.combine(run_experts(seat, dispatched, weighted=weighted), out, weighted=weighted)
    return combined.status, reference.decode(out, dtype), np.asarray(combined.missing), combined.suspects


def step(seat, routing, seed, tokens, k, layers):  # noqa: PLR0917 - they cross a pipe in order
    """A sync and ``layers`` rounds, each checked against the reference; (status, rounds that were wrong)."""
    wrong = 0
    mine = tokens[seat.rank]
    status, rows, *_ = sync(seat, mine)
    if status != _native.Status.OK:
        return status, wrong
    assert [row[1] for row in rows] == [tokens[row[0]] for row in rows]
    dtype = seat.group.shape.dtype
    for layer in range(layers):
        x, ids, weights = batch(seat, seed + layer, mine, k)
        status, out, missing, _ = one_round(seat, layer, x, ids, weights)
        if status != _native.Status.OK:
            return status, wrong
        expected, lost = reference.combine(
            routing, layer=layer, source=seat.rank, x=x, ids=ids, weights=weights, dtype=dtype
        )
        wrong += not (np.array_equal(out, expected) and np.array_equal(missing, lost))
    return status, wrong


def counters(seat):
    return seat.group.counters()
