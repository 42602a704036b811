"""``tools/bench NAME …`` runs ``main`` of the module NAME in this folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def names() -> list[str]:
    """Benchmarks there are: modules that define ``main``."""
    here = Path(__file__).parent
    return sorted(file.stem for file in here.glob("[a-z]*.py") if "\ndef main(" in file.read_text(encoding="utf-8"))


def run(argv: list[str]) -> int:
    """Dispatch; the exit status."""
    if not argv or argv[0] not in names():
        sys.stderr.write(f"usage: tools/bench {{{','.join(names())}}} [--json FILE]\n")
        return 64
    main = importlib.import_module(f"tools.benchmarks.{argv[0]}").main
    status: int = main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
