"""What a change costs and how quickly a fault shows: table swaps, deadlines, the fault word."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch

from tools.virtual_ranks import Rig, Sizes


def swaps(*, count: int = 200) -> dict[str, Any]:
    """Host time to stage and to activate a table of 58 layers × 256 experts; a graph's time with and without swaps."""
    sizes = Sizes(ranks=4, tokens=32, hidden=2048, topk=8, experts=256, layers=58)
    with Rig(sizes=sizes) as rig:
        rig.enter_epoch(1, range(sizes.ranks))
        batches = [rig.batch(seed=rank) for rank in range(sizes.ranks)]
        outputs = [torch.randn(g.buffer_shape, device="cuda").to(torch.bfloat16) for g in rig.groups]
        torch.cuda.synchronize()

        def step(rank: int) -> None:
            group, stream, batch = rig.groups[rank], rig.streams[rank], batches[rank]
            group.enqueue_sync(stream=stream)
            for layer in range(4):
                group.dispatch(layer, batch.x, batch.ids, batch.weights, stream=stream)
                group.combine(outputs[rank], batch.out, weighted=False, stream=stream)

        graphs = {rank: rig.capture(rank, partial(step, rank)) for rank in range(sizes.ranks)}
        rig.replay(graphs)
        torch.cuda.synchronize()
        quiet, swapped, staged, activated = [], [], [], []
        for epoch in range(2, 2 + count):
            quiet.append(_replay_us(rig, graphs))
            table = sizes.table(epoch=epoch, active=range(sizes.ranks), incarnations=rig.incarnations)
            for group in rig.groups:
                begin = time.perf_counter_ns()
                group.stage(table)
                middle = time.perf_counter_ns()
                group.activate_at(epoch)
                activated.append((time.perf_counter_ns() - middle) / 1e3)
                staged.append((middle - begin) / 1e3)
            swapped.append(_replay_us(rig, graphs))
        epochs = {group.epoch for group in rig.groups}
    return {
        "swaps": count,
        "captures": len(graphs),
        "all_crossed": epochs == {1 + count},
        "stage_us": statistics.median(staged),
        "activate_us": statistics.median(activated),
        "activate_p99_us": sorted(activated)[int(0.99 * (len(activated) - 1))],
        "step_us_without": statistics.median(quiet),
        "step_us_with": statistics.median(swapped),
    }


def _replay_us(rig: Rig, graphs: dict[int, Any]) -> float:
    """One step by the rank that was launched last: the others' clocks run while they wait for it in the sync."""
    marks = []
    for rank, graph in graphs.items():
        stream = rig.streams[rank]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            start.record(stream)
            graph.replay()
            end.record(stream)
        marks.append((start, end))
    torch.cuda.synchronize()
    return 1e3 * min(float(start.elapsed_time(end)) for start, end in marks)


def deadlines(*, wanted_s: tuple[float, ...] = (0.02, 0.1, 0.5, 1.0)) -> list[dict[str, Any]]:
    """How long a rank really waits for one that is silent, deadlines changed under one captured graph."""
    rows = []
    with Rig(sizes=Sizes(ranks=2, experts=8), hard_timeout_s=30.0) as rig:
        rig.enter_epoch(1, [0, 1])
        graph = rig.capture(0, lambda: rig.groups[0].enqueue_sync(stream=rig.streams[0]))
        for epoch, wanted in enumerate(wanted_s, start=2):
            rig.groups[0].set_timeouts(timeout_s=wanted, hard_timeout_s=30.0)
            waited = _replay_us(rig, {0: graph}) / 1e6
            rows.append(
                {
                    "deadline_s": wanted,
                    "waited_s": waited,
                    "ratio": waited / wanted,
                    "status": rig.groups[0].status,
                    "suspects": rig.groups[0].suspects,
                }
            )
            rig.enter_epoch(epoch, [0, 1])
    return rows


def fault_word(*, count: int = 50) -> dict[str, Any]:
    """Kernel reports, host sees it and calls off, kernel sees that: the round trip on the kernel's own clock."""
    trips = []
    with Rig(sizes=Sizes(ranks=1, experts=8), hard_timeout_s=5.0) as rig:
        group, stream = rig.groups[0], rig.streams[0]
        for index in range(count):
            rig.enter_epoch(index + 1, [0])
            group.enqueue_sync(stream=stream)
            torch.cuda.synchronize()
            group.native.launch_probe(stream.cuda_stream)
            end = time.monotonic() + 4
            while len(group.faults(after=index)) == 0 and time.monotonic() < end:
                pass  # what is measured is the latency of one look
            group.call_off(index + 2)
            torch.cuda.synchronize()
            trips.append(group.native.probe_ns / 1e3)
    return {"count": count, "round_trip_us": statistics.median(trips), "round_trip_max_us": max(trips)}


def link_repair(*, count: int = 30) -> dict[str, Any]:
    """Fence and reconnect one peer: a fresh chunk under the old address, and a new mapping of it at the peer."""
    times = []
    with Rig(sizes=Sizes(ranks=2, tokens=128, hidden=7168, topk=8, experts=16)) as rig:
        rig.enter_epoch(1, [0])
        rig.groups[0].enqueue_sync(stream=rig.streams[0])
        torch.cuda.synchronize()
        for _ in range(count):
            begin = time.perf_counter_ns()
            descriptor = rig.groups[0].renew_inbox(1)
            rig.groups[1].connect(0, incarnation=rig.incarnations[0], inbox_fd=descriptor)
            times.append((time.perf_counter_ns() - begin) / 1e6)
        chunk = rig.groups[0].native.chunk_bytes
    return {"count": count, "chunk_bytes": chunk, "repair_ms": statistics.median(times), "repair_max_ms": max(times)}
