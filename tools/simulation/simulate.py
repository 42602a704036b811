"""``tools/simulate``: thousands of seeds of the real control plane and the real agents in virtual time."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.simulation.broken import Broken, broken
from tools.simulation.faults import tell
from tools.simulation.virtual_time import run
from tools.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

STORY_LINES = 60


@dataclass(frozen=True)
class Verdict:
    """How one seed went."""

    seed: int
    problems: tuple[str, ...]
    epochs: int
    events: int
    steps: int
    virtual_s: float
    story: tuple[tuple[float, str], ...]


def simulate(seed: int, *, what: Broken = Broken.NOTHING) -> Verdict:
    """Run one seed."""
    world = World(seed, ranks=3 + seed % 3)
    with broken(what):
        run(tell(world))
    record = world.checker.record
    return Verdict(
        seed=seed,
        problems=tuple(world.checker.problems),
        epochs=record.committed.epoch if record else 0,
        events=world.checker.checked,
        steps=world.fabric.sampled,
        virtual_s=world.story[-1][0] if world.story else 0.0,
        story=tuple(world.story),
    )


def _one(job: tuple[int, Broken]) -> Verdict:
    logging.disable(logging.CRITICAL)
    seed, what = job
    verdict = simulate(seed, what=what)
    kept = verdict.story if verdict.problems else ()
    return Verdict(**{**asdict(verdict), "story": kept, "problems": verdict.problems})


def campaign(seeds: range, *, what: Broken, jobs: int) -> Iterator[Verdict]:
    """Verdicts of many seeds, as they come."""
    work = [(seed, what) for seed in seeds]
    if jobs <= 1:
        yield from map(_one, work)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_one, work, chunksize=4)


def show(verdict: Verdict, *, lines: int) -> None:
    """The story of a seed, its end if it is long."""
    for when, what in verdict.story[-lines:] if lines else verdict.story:
        print(f"  {when:9.4f} s  {what}")
    for problem in verdict.problems[:5]:
        print(f"seed {verdict.seed}: {problem}")


def main(argv: list[str] | None = None) -> int:
    """Exit 0 when no invariant was violated, else 1; with ``--broken`` the other way round."""
    parser = argparse.ArgumentParser(prog="tools/simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds to run (default 2000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="tell the whole story of one seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument(
        "--broken", type=Broken, choices=list(Broken), default=Broken.NOTHING, help="take out one safeguard"
    )
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args(argv)
    if options.seed is not None:
        logging.disable(logging.CRITICAL)
        verdict = simulate(options.seed, what=options.broken)
        show(verdict, lines=0)
        print("no violation" if not verdict.problems else "violated")
        return int(bool(verdict.problems))
    return _campaign(options)


def _campaign(options: argparse.Namespace) -> int:
    began = time.monotonic()
    seeds = range(options.first, options.first + options.seeds)
    failed, done, epochs, events, steps = [], 0, 0, 0, 0
    for verdict in campaign(seeds, what=options.broken, jobs=options.jobs):
        done, epochs, events, steps = (
            done + 1,
            epochs + verdict.epochs,
            events + verdict.events,
            steps + verdict.steps,
        )
        if verdict.problems:
            failed.append(verdict)
            if options.broken is not Broken.NOTHING:
                break
        if done % 100 == 0:
            print(f"{done} seeds, {len(failed)} with violations, {time.monotonic() - began:.0f} s", file=sys.stderr)
    seconds = time.monotonic() - began
    for verdict in failed[:3]:
        show(verdict, lines=STORY_LINES)
        print(f"again: tools/simulate --seed {verdict.seed}")
    print(
        f"{done} seeds in {seconds:.0f} s: {epochs} epochs, {events} records checked, {steps} steps sampled, "
        f"{len(failed)} seeds with violations"
    )
    if options.json:
        result = {
            "seeds": done,
            "seconds": round(seconds, 1),
            "epochs": epochs,
            "records": events,
            "steps": steps,
            "broken": options.broken.value,
            "violations": [{"seed": v.seed, "problems": list(v.problems)} for v in failed],
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    caught = bool(failed)
    return int(caught) if options.broken is Broken.NOTHING else int(not caught)


if __name__ == "__main__":
    sys.exit(main())
