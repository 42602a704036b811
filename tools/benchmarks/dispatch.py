"""Dispatch and combine against a fixed-membership build of the same code and against gloo, interleaved in one run.

Every rank dispatches top-8 of 32 experts. gloo's ``all_to_all_single`` carries the same (token, expert) rows, already
packed: it neither routes nor gathers, which is in its favour; ``gloo_unique`` is given de-duplicated rows as well.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from native import _native
from tools.benchmarks.fleet import Fleet, Seat
from tools.benchmarks.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

TOPK = 8
EXPERTS = 32
MAX_TOKENS = 128
_ELASTIC, _FIXED = 0, 1


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    ranks: int
    tokens: int
    hidden: int


@dataclass(frozen=True)
class Figures:
    """Median and 99th percentile of one operation over all ranks, µs."""

    median_us: float
    p99_us: float

    @classmethod
    def of(cls, samples_ns: Sequence[int]) -> Figures:
        """From nanoseconds."""
        return cls(float(np.median(samples_ns)) / 1e3, float(np.percentile(samples_ns, 99)) / 1e3)


# --- inside a rank ----------------------------------------------------------------------------------------------------


def pin(seat: Seat) -> None:
    """One processor per rank, shared evenly where there are fewer: placement must not differ between variants."""
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[seat.rank % len(processors)]})


def join_gloo(seat: Seat, store: str, ranks: int) -> None:
    """Make gloo's process group."""
    import torch  # noqa: PLC0415 - only ranks need it
    import torch.distributed as dist  # noqa: PLC0415

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=seat.rank, world_size=ranks)


def enter(seat: Seat, epoch: int, incarnations: list[int]) -> None:
    """Cross into an epoch in which expert e lives on rank e // (experts / ranks)."""
    ranks = sum(1 for incarnation in incarnations if incarnation)
    experts = np.arange(EXPERTS, dtype=np.uint16)
    table = _native.Table(
        epoch=epoch,
        active=list(range(ranks)),
        incarnations=incarnations,
        offsets=np.arange(EXPERTS + 1, dtype=np.int32)[None, :],
        ranks=experts // (EXPERTS // ranks),
        slots=experts % (EXPERTS // ranks),
        weights=np.ones(EXPERTS, dtype=np.uint16),
    )
    for group in seat.groups:
        group.stage(table)
        group.activate(epoch)


def prepare(seat: Seat, tokens: int) -> None:
    """Inputs of a case, and what combine must give for them."""
    import torch  # noqa: PLC0415

    hidden, ranks = seat.group.shape.hidden, len(seat.group.linked()) + 1
    random = torch.Generator().manual_seed(1000 * tokens + seat.rank)
    x = torch.randn(tokens, hidden, generator=random).bfloat16()
    ids = torch.rand(tokens, EXPERTS, generator=random).argsort(dim=1)[:, :TOPK].to(torch.int32).contiguous()
    weights = torch.rand(tokens, TOPK, generator=random)
    copied = torch.empty(tokens * TOPK, hidden, dtype=torch.bfloat16).copy_(x.repeat_interleave(TOPK, dim=0))
    unique = max(1, tokens) * min(ranks, TOPK)
    seat.memory["case"] = {
        "x": x,
        "ids": ids,
        "weights": weights,
        "out": torch.empty_like(x),
        "wanted": x.float() * weights.sum(dim=1, keepdim=True),
        "gloo": (copied, torch.empty_like(copied)),
        "gloo_unique": (copied[:unique].clone(), torch.empty(unique, hidden, dtype=torch.bfloat16)),
    }


def measure_ours(seat: Seat, iterations: int) -> tuple[list[list[int]], list[list[int]], int]:
    """Both builds in turn, round by round: dispatch ns, combine ns of each, and how many of the last sums are wrong.

    Experts are the identity, weighted by the router.
    """
    case = seat.memory["case"]
    x, ids, weights = case["x"], case["ids"], case["weights"]
    outs = [case["out"], case["out"].clone()]
    for group in seat.groups:
        if group.sync(_native.SyncRow(tokens=len(x))).status != _native.Status.OK:
            raise RuntimeError("a rank was suspected during a benchmark")
    dispatch_ns: list[list[int]] = [[], []]
    combine_ns: list[list[int]] = [[], []]
    clock = time.perf_counter_ns
    for i in range(iterations):
        for variant in (_ELASTIC, _FIXED) if i % 2 else (_FIXED, _ELASTIC):
            group, out = seat.groups[variant], outs[variant]
            began = clock()
            dispatched = group.dispatch(0, x, ids, weights)
            sent = clock()
            rows = dispatched.rows
            start = clock()
            group.combine(rows, out, weighted=False)
            combine_ns[variant].append(clock() - start)
            dispatch_ns[variant].append(sent - began)
    wanted = case["wanted"]
    wrong = sum(not bool(((out.float() - wanted).abs() <= 0.02 * wanted.abs() + 0.02).all()) for out in outs)
    wrong += not bool((outs[_ELASTIC] == outs[_FIXED]).all())
    return dispatch_ns, combine_ns, wrong


def measure_gloo(seat: Seat, which: str, iterations: int) -> list[int]:
    """``all_to_all_single`` ns."""
    import torch.distributed as dist  # noqa: PLC0415

    sent, received = seat.memory["case"][which]
    samples = []
    dist.barrier()
    for _ in range(iterations):
        began = time.perf_counter_ns()
        dist.all_to_all_single(received, sent)
        samples.append(time.perf_counter_ns() - began)
    return samples


# --- the parent -------------------------------------------------------------------------------------------------------


def _iterations(case: Case) -> int:
    """So many per block that a block takes some milliseconds: neighbouring blocks then see the same machine."""
    return max(10, min(800, 600_000 // (case.tokens * case.hidden)))


def run_case(fleet: Fleet, case: Case, *, blocks: int) -> dict[str, Any]:
    """One row: our two builds take turns round by round, they and gloo block by block."""
    fleet.call_all(prepare, case.tokens)
    iterations = _iterations(case)
    dispatch: dict[int, list[list[int]]] = {_ELASTIC: [], _FIXED: []}
    combine: dict[int, list[list[int]]] = {_ELASTIC: [], _FIXED: []}
    gloo: dict[str, list[int]] = {"gloo": [], "gloo_unique": []}
    wrong = 0
    for block in range(blocks + 1):  # the first warms up
        answers = fleet.call_all(measure_ours, iterations)
        wrong += sum(answer[2] for answer in answers.values())
        for variant in (_ELASTIC, _FIXED) if block else ():
            dispatch[variant].append([ns for answer in answers.values() for ns in answer[0][variant]])
            combine[variant].append([ns for answer in answers.values() for ns in answer[1][variant]])
        for which, samples in gloo.items():
            taken = fleet.call_all(measure_gloo, which, max(4, iterations // 8))
            if block:
                samples += [ns for answer in taken.values() for ns in answer]
    ours = Figures.of([ns for samples in dispatch[_ELASTIC] for ns in samples])
    theirs = Figures.of(gloo["gloo"])
    rounds = {
        variant: [
            statistics.median(d) + statistics.median(c)
            for d, c in zip(dispatch[variant], combine[variant], strict=True)
        ]
        for variant in (_ELASTIC, _FIXED)
    }
    return {
        **asdict(case),
        "dispatch": asdict(ours),
        "combine": asdict(Figures.of([ns for samples in combine[_ELASTIC] for ns in samples])),
        "fixed_dispatch": asdict(Figures.of([ns for samples in dispatch[_FIXED] for ns in samples])),
        "fixed_combine": asdict(Figures.of([ns for samples in combine[_FIXED] for ns in samples])),
        "gloo": asdict(theirs),
        "gloo_unique": asdict(Figures.of(gloo["gloo_unique"])),
        "gloo_over_dispatch": theirs.median_us / ours.median_us,
        # block by block: the two share whatever else the machine was doing
        "elastic_over_fixed": statistics.median(e / f for e, f in zip(rounds[_ELASTIC], rounds[_FIXED], strict=True)),
        "wrong_sums": wrong,
    }


def run_ranks(ranks: int, hidden: int, tokens: Sequence[int], *, blocks: int) -> list[dict[str, Any]]:
    """All rows of one shape."""
    shape = _native.Shape(
        max_ranks=ranks,
        max_tokens=MAX_TOKENS,
        hidden=hidden,
        max_topk=TOPK,
        max_slots=EXPERTS,
        n_experts=EXPERTS,
        n_layers=1,
        dtype=_native.DType.BFLOAT16,
    )
    with Fleet(shape, fixed_twin=True) as fleet, tempfile.TemporaryDirectory(prefix="eep-gloo-") as folder:
        for rank in range(ranks):
            fleet.start(rank)
        fleet.link_all(range(ranks))
        fleet.call_all(pin)
        fleet.call_all(join_gloo, str(Path(folder) / "store"), ranks)
        fleet.call_all(enter, 1, [fleet.ranks[rank].incarnation for rank in range(ranks)])
        return [run_case(fleet, Case(ranks, count, hidden), blocks=blocks) for count in tokens]


def memory_at(ranks: int) -> dict[str, float]:
    """Megabytes of inbox that one rank holds once every peer has written all it may: 128 tokens of 7168 bf16."""
    shape = _native.Shape(
        max_ranks=ranks,
        max_tokens=MAX_TOKENS,
        hidden=7168,
        max_topk=TOPK,
        max_slots=8,
        n_experts=256,
        n_layers=1,
        dtype=_native.DType.BFLOAT16,
    )
    with tempfile.TemporaryDirectory(prefix="eep-memory-") as folder:
        control = _native.ControlBlock.create(str(Path(folder) / "control"), rank=0, incarnation=1)
        group = _native.Group(rank=0, incarnation=1, shape=shape, control=control)
        held = 0
        for source in range(1, ranks):
            fd = group.inbox_fd(source)
            with mmap.mmap(fd, shape.chunk_bytes) as chunk:
                for page in range(0, shape.chunk_bytes, mmap.PAGESIZE):
                    chunk[page + mmap.PAGESIZE - 1] = 1
            held += os.fstat(fd).st_blocks * 512
            os.close(fd)
        group.close()
    return {"ranks": ranks, "inbox_mb": held / 1e6, "chunk_mb": shape.chunk_bytes / 1e6}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'ranks':>5} {'tokens':>6} {'hidden':>6} {'dispatch µs':>16} {'combine µs':>16} {'gloo µs':>16} "
        f"{'gloo ÷ ours':>11} {'elastic ÷ fixed':>15} wrong"
    )
    for row in rows:
        cells = [
            f"{row[name]['median_us']:8.1f}/{row[name]['p99_us']:7.0f}" for name in ("dispatch", "combine", "gloo")
        ]
        print(
            f"{row['ranks']:>5} {row['tokens']:>6} {row['hidden']:>6} {cells[0]:>16} {cells[1]:>16} {cells[2]:>16} "
            f"{row['gloo_over_dispatch']:>11.1f} {row['elastic_over_fixed']:>15.3f} {row['wrong_sums']}"
        )


def main(argv: list[str]) -> int:
    """Run the benchmark; 0 when every sum was right."""
    parser = argparse.ArgumentParser(prog="tools/bench dispatch", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 7168])
    parser.add_argument("--blocks", type=int, default=20, help="turns that each variant takes")
    options = parser.parse_args(argv)
    rows = []
    for ranks in options.ranks:
        for hidden in options.hidden:
            rows += run_ranks(ranks, hidden, options.tokens, blocks=options.blocks)
    memory = memory_at(64)
    ratio = statistics.median(row["elastic_over_fixed"] for row in rows)
    _print(rows)
    print(f"elastic ÷ fixed, median of all rows: {ratio:.4f}; inbox of one rank among 64: {memory['inbox_mb']:.0f} MB")
    result = {
        **provenance("tools/bench dispatch"),
        "isa": _native.isa(),
        "topk": TOPK,
        "experts": EXPERTS,
        "rows": rows,
        "elastic_over_fixed": ratio,
        "memory_at_64_ranks": memory,
        "wrong_sums": sum(row["wrong_sums"] for row in rows),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["wrong_sums"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
