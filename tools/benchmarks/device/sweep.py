"""Elastic ÷ fixed: two builds of one source on the same streams, interleaved, and their share of the copy bandwidth."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from native.cuda import Layout, Wire
from tools.virtual_ranks import OK, Rig, Sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS: Final = 40
"""Rounds in one graph, behind a sync."""
GIVE_UP_AFTER: Final = 3
"""Cases that fail one after another: an error of the device sticks."""
EXPERTS: Final = 256
TOPK: Final = 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point of the sweep."""

    tokens: int
    hidden: int
    ranks: int
    wire: Wire


def cases() -> Iterator[Case]:
    """Tokens × hidden × ranks × wire, the largest first: if time runs out, what matters most is there."""
    for tokens in (128, 8, 32, 1):
        for hidden in (7168, 2048):
            for ranks in (8, 4):
                for wire in (Wire.BFLOAT16, Wire.FP8):
                    yield Case(tokens=tokens, hidden=hidden, ranks=ranks, wire=wire)


class Bench:
    """One build of one case: its ranks, inputs and captured graphs."""

    def __init__(self, rig: Rig, outputs: list[Any] | None) -> None:
        self.rig = rig
        rig.enter_epoch(1, range(rig.sizes.ranks))
        self.batches = [rig.batch(seed=rank) for rank in range(rig.sizes.ranks)]
        self.outputs = outputs or [_expert_outputs(group.buffer_shape) for group in rig.groups]
        torch.cuda.synchronize()
        for group, stream in zip(rig.groups, rig.streams, strict=True):
            group.enqueue_sync(stream=stream)  # takes the table: the fixed build needs its epoch too
        torch.cuda.synchronize()
        if stuck := [group.rank for group in rig.groups if group.status != OK]:
            raise RuntimeError(f"ranks {stuck} did not meet in a sync: their kernels do not run side by side")
        self.graphs = {rank: rig.capture(rank, partial(self._rounds, rank)) for rank in range(rig.sizes.ranks)}

    def _rounds(self, rank: int) -> None:
        self.rig.groups[rank].enqueue_sync(stream=self.rig.streams[rank])
        for _ in range(ROUNDS):
            self.dispatch(rank)
            self.combine(rank)

    def dispatch(self, rank: int) -> None:
        """One dispatch of one rank."""
        batch = self.batches[rank]
        self.rig.groups[rank].dispatch(0, batch.x, batch.ids, batch.weights, stream=self.rig.streams[rank])

    def combine(self, rank: int) -> None:
        """One combine of one rank."""
        out = self.batches[rank].out
        self.rig.groups[rank].combine(self.outputs[rank], out, weighted=False, stream=self.rig.streams[rank])

    def graph_us(self) -> float:
        """Microseconds of one round inside a graph.

        By the rank that was launched last: the others' clocks run while they wait for it in the sync. No rank begins a
        round before it, and each round takes all of them. The sync's own time is spread over the rounds.
        """
        marks = [self._events(2) for _ in self.rig.streams]
        for rank, stream in enumerate(self.rig.streams):
            with torch.cuda.stream(stream):
                marks[rank][0].record(stream)
                self.graphs[rank].replay()
                marks[rank][1].record(stream)
        torch.cuda.synchronize()
        return 1e3 * min(float(start.elapsed_time(end)) for start, end in marks) / ROUNDS

    def eager_us(self) -> tuple[float, float]:
        """Microseconds of a dispatch and of a combine launched one by one: the rank's that waits least for launches."""
        count = len(self.rig.streams)
        marks = [self._events(3) for _ in range(count)]
        for step, work in enumerate((None, self.dispatch, self.combine)):
            for rank in range(count):
                if work is not None:
                    work(rank)
                marks[rank][step].record(self.rig.streams[rank])
        torch.cuda.synchronize()
        dispatch = min(m[0].elapsed_time(m[1]) for m in marks) * 1e3
        combine = min(m[1].elapsed_time(m[2]) for m in marks) * 1e3
        return dispatch, combine

    @staticmethod
    def _events(count: int) -> list[Any]:
        return [torch.cuda.Event(enable_timing=True) for _ in range(count)]


def _expert_outputs(shape: tuple[int, ...]) -> Any:
    """Random, but alike in all rows of a slot: where a row was put within its slot may then differ between two runs."""
    rows = torch.randn((shape[0], 1, shape[2]), device="cuda").to(torch.bfloat16)
    return rows.expand(shape).contiguous()


def moved_bytes(sizes: Sizes, batches: list[Any]) -> int:
    """Bytes that one round must read and write on all ranks together: rows, packed rows, partial sums, outputs."""
    row = sizes.hidden + sizes.hidden // 128 * 4 if sizes.wire is Wire.FP8 else 2 * sizes.hidden
    wide, total = 2 * sizes.hidden, 0
    for batch in batches:
        home = batch.ids.long() // (sizes.experts // sizes.ranks)
        crossing = sum(int(ranks.unique().numel()) for ranks in home)
        tokens, pairs = batch.x.shape[0], batch.ids.numel()
        total += tokens * wide + crossing * row  # sender reads x, writes rows
        total += crossing * row + pairs * row  # receiver reads rows, writes them for each expert
        total += pairs * wide + crossing * wide  # partial sums
        total += crossing * wide + tokens * wide  # the last sum
    return total


def measure(case: Case, *, repeats: int, green: bool, ceiling: float) -> dict[str, Any]:
    """One case: both builds, A/B/A/B."""
    sizes = Sizes(
        ranks=case.ranks,
        tokens=case.tokens,
        hidden=case.hidden,
        topk=TOPK,
        experts=EXPERTS,
        layers=1,
        wire=case.wire,
        layout=Layout.EXPERT_MAJOR,
    )
    with Rig(sizes=sizes, green=green) as elastic, Rig(sizes=sizes, fixed=True, partition=elastic.partition) as fixed:
        a = Bench(elastic, None)
        b = Bench(fixed, a.outputs)
        graph: dict[str, list[float]] = {"elastic": [], "fixed": []}
        eager: dict[str, list[tuple[float, float]]] = {"elastic": [], "fixed": []}
        for index in range(repeats + 3):
            for name, bench in (("elastic", a), ("fixed", b)) if index % 2 else (("fixed", b), ("elastic", a)):
                us, single = bench.graph_us(), bench.eager_us()
                if index >= 3:
                    graph[name].append(us)
                    eager[name].append(single)
        torch.cuda.synchronize()
        lost = sum(group.counters()["rounds_lost"] for group in elastic.groups)
        agree = all(bool((x.out == y.out).all()) for x, y in zip(a.batches, b.batches, strict=True))
        bytes_ = moved_bytes(sizes, a.batches)
        if lost:
            raise RuntimeError(f"{lost} rounds were lost to suspicion: times of rounds that did nothing mean nothing")
    middle = {name: statistics.median(values) for name, values in graph.items()}
    return {
        "tokens": case.tokens,
        "hidden": case.hidden,
        "ranks": case.ranks,
        "wire": case.wire.name.lower(),
        "partition": elastic.partition.kind if elastic.partition else "none",
        "blocks_per_rank": elastic.partition.blocks if elastic.partition else 0,
        "repeats": repeats,
        "graph_round_us": middle,
        "graph_round_p99_us": {name: sorted(values)[int(0.99 * (len(values) - 1))] for name, values in graph.items()},
        "graph_ratio": middle["elastic"] / middle["fixed"],
        "graph_ratio_spread": _spread(graph["elastic"], graph["fixed"]),
        "eager_dispatch_us": {name: statistics.median(v[0] for v in values) for name, values in eager.items()},
        "eager_combine_us": {name: statistics.median(v[1] for v in values) for name, values in eager.items()},
        "eager_ratio": _total(eager["elastic"]) / _total(eager["fixed"]),
        "moved_bytes": bytes_,
        "share_of_copy_bandwidth": bytes_ / (middle["elastic"] * 1e-6) / ceiling,
        "outputs_agree": agree,
    }


def _total(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(dispatch + combine for dispatch, combine in pairs)


def _spread(top: list[float], bottom: list[float]) -> float:
    """Half the distance between the ratios of the two halves of the run: a smaller difference is noise."""
    half = len(top) // 2
    first = statistics.median(top[:half]) / statistics.median(bottom[:half])
    second = statistics.median(top[half:]) / statistics.median(bottom[half:])
    return abs(first - second) / 2


def run(
    *, seconds: float, repeats: int, green: bool, ceiling: float, on_rows: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Every case that fits the time; ``on_rows`` gets all rows so far after each."""
    end, rows, failures, left = time.monotonic() + seconds, [], 0, list(cases())
    while left and time.monotonic() < end and failures < GIVE_UP_AFTER:
        case = left.pop(0)
        try:
            row = measure(case, repeats=repeats, green=green, ceiling=ceiling)
        except RuntimeError as error:
            where = "green contexts" if green else "plain streams"
            row = asdict(case) | {"wire": case.wire.name.lower(), "partition": where, "failed": str(error)}
            if green:  # without them it may still be measured, and so may the rest
                green = False
                left.insert(0, case)
        failures = failures + 1 if "failed" in row else 0
        rows.append(row)
        on_rows(rows)
        print(_line(case, row), flush=True)
    return rows


def _line(case: Case, row: dict[str, Any]) -> str:
    head = f"{case.tokens:4d} × {case.hidden:5d} {case.wire.name.lower():8s} {case.ranks} ranks, {row['partition']}: "
    if "failed" in row:
        return head + str(row["failed"])
    return (
        f"{head}round {row['graph_round_us']['elastic']:7.1f} µs, "
        f"elastic ÷ fixed {row['graph_ratio']:.3f} ± {row['graph_ratio_spread']:.3f}, "
        f"{100 * row['share_of_copy_bandwidth']:.0f} % of copy bandwidth"
    )
