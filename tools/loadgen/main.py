"""Command line: load a gateway or a rank, check every token, print what clients felt."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import msgspec

from tools.loadgen.check import teacher_forced
from tools.loadgen.client import Load, Target
from tools.loadgen.timing import timing
from tools.loadgen.workload import Workload
from tools.models.random_moe import SHIPPED


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/load", description=__doc__)
    parser.add_argument(
        "url", nargs="+", help="gateway or rank, e.g. http://127.0.0.1:8000; clients are dealt out over several"
    )
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the model that is served")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(8, 96), metavar=("MIN", "MAX"))
    parser.add_argument("--answer-tokens", type=int, nargs=2, default=(64, 64), metavar=("MIN", "MAX"))
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tries", type=int, default=1, help="times a request may be sent (a gateway may be killed)")
    parser.add_argument("--no-check", action="store_true", help="do not judge tokens (sampled ones never are)")
    parser.add_argument("--json", type=Path, help="write the figures and every answer here")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Exit status 0 when every request completed and, where they were judged, every token is right."""
    options = _options(argv)
    workload = Workload(
        model=options.model,
        seed=options.seed,
        prompt_tokens=tuple(options.prompt_tokens),
        answer_tokens=tuple(options.answer_tokens),
        temperature=options.temperature,
    )
    target = Target(urls=tuple(options.url), tries=options.tries)
    load = Load(target, islice(workload, options.requests), concurrency=options.concurrency)
    answers = asyncio.run(load.run())
    failed = [answer for answer in answers if answer.outcome != "complete"]
    report: dict[str, object] = {"timing": asdict(timing(answers)), "failed": len(failed)}
    good = not failed
    if not (options.no_check or options.temperature):
        verdict = teacher_forced(answers, options.model)
        report["verdict"] = asdict(verdict)
        good = verdict.good
    print(msgspec.json.format(msgspec.json.encode(report)).decode())
    for answer in failed[:5]:
        print(f"request {answer.ask.id}: {answer.outcome}: {answer.error}", file=sys.stderr)
    if options.json:
        options.json.write_bytes(msgspec.json.encode({**report, "answers": answers}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
