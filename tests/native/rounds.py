"""Functions that run inside the ranks of a fleet (they are sent by name, so they live in a module)."""

from __future__ import annotations

import os
import select
import threading
import time

import numpy as np

from native import _native
from tests.native import reference


def stage(seat, routing, epoch, incarnations):
    seat.group.stage(routing.table(epoch=epoch, incarnations=incarnations))


def stage_without(seat, routing, epoch, incarnations, lost):
    """The table of epoch 1 without one of its ranks, as another version."""
    seat.group.stage(routing.table(epoch=1, incarnations=incarnations).without(lost, epoch=epoch))


def activate(seat, epoch):
    seat.group.activate(epoch)


def sync(seat, tokens, **fields):
    """(status, rows as tuples, suspects, seconds)."""
    began = time.monotonic()
    result = seat.group.sync(_native.SyncRow(tokens=tokens, **fields))
    rows = [(row.rank, row.tokens, row.prepared_epoch, row.committed_epoch, row.user) for row in result.rows]
    return result.status, rows, result.suspects, time.monotonic() - began


def look_again(seat):
    return seat.group.look_again()


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


def late_sync(seat, delay_s, phase=None):
    """A rank that takes its time; ``phase``: what it declares meanwhile."""
    if phase is not None:
        seat.control.phase = phase
        time.sleep(0.05)  # the heartbeat carries it to the peers within 20 ms
    time.sleep(delay_s)
    return sync(seat, 0)


def fault_of(seat):
    word = seat.control.fault()
    return word.serial, word.epoch, word.layer, word.suspects, [kind.name for kind in word.evidence]


def steps(seat, routing, tokens, count):
    """Several checked steps; (last status, rounds that were wrong)."""
    wrong = 0
    for seed in range(count):
        status, bad = step(seat, routing, seed, tokens, 2, seat.group.shape.n_layers)
        wrong += bad
        if status != _native.Status.OK:
            break
    return status, wrong


def ticks_while_waiting(seat):
    """How often another thread of this process ran while the stepping thread waited."""
    ticks = 0
    done = threading.Event()

    def tick():
        nonlocal ticks
        while not done.wait(0.002):
            ticks += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    status = sync(seat, 0)[0]
    done.set()
    ticker.join()
    return status, ticks


def sleep_until_rung(seat, timeout_s):
    """What an idle engine does: look, sleep on the doorbell, look again."""
    fd = seat.group.doorbell_fd()
    try:
        looks = []
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            looks.append(seat.group.sync_arrived())
            if looks[-1]:
                break
            select.select([fd], [], [], timeout_s)
        return looks
    finally:
        os.close(fd)


def reentered(seat):
    """Messages of a second sync while one waits."""
    first = threading.Thread(target=sync, args=(seat, 0))
    first.start()
    time.sleep(0.05)
    try:
        sync(seat, 0)
    except RuntimeError as error:
        return str(error)
    finally:
        first.join()
    return ""


def resources(seat):
    """(open descriptors, mappings, inodes of the chunks that healthy peers write into)."""
    inodes = []
    for peer in sorted(seat.group.linked()):
        fd = seat.group.inbox_fd(peer)
        inodes.append((peer, os.fstat(fd).st_ino))
        os.close(fd)
    with open("/proc/self/maps", encoding="ascii") as maps:  # noqa: PTH123 - a file of the kernel's
        return len(os.listdir("/proc/self/fd")), sum(1 for _ in maps), inodes  # noqa: PTH208


def idle_share(seat, seconds):
    """Share of a processor that a rank takes while it does nothing."""
    began = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - began) / seconds


def chunk_fd(seat, source):
    """Descriptor number of a chunk in this rank, for the parent to open through /proc."""
    return seat.group.inbox_fd(source)


def renew(seat, source):
    os.close(seat.group.renew_inbox(source))
