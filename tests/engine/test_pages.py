"""What an engine holds is moved into large pages, and stays what it was."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from worker.engine.pages import collapse

SIZE = 8 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_kib():
    (line,) = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in line]
    return int(line.split()[1])


needs_large_pages = pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="no large pages on this kernel"
)
SHARES = f"""
import mmap, os, sys
from tests.engine.test_pages import large_kib
from worker.engine.pages import collapse
memory = mmap.mmap(-1, {SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"x" * {SIZE}
collapse()
if (pid := os.fork()) == 0:
    if sys.argv[1] == "collapse":
        collapse()
    before = large_kib()
    for at in range(0, {SIZE}, 1 << 20):
        memory[at : at + 1] = b"y"
    print(before - large_kib(), memory[:].count(b"x"), flush=True)
os.waitpid(pid, 0) if pid else os._exit(0)
"""
"""Prints how many KiB fall out of large pages when a forked process writes, and how many bytes stay as they were."""


@needs_large_pages
def test_private_memory_is_in_large_pages_afterwards_and_unchanged():
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        content = bytes(range(256)) * (SIZE // 256)
        memory[:] = content
        before = large_kib()
        assert collapse() >= SIZE // 2, "all but the ends that fill no large page"
        assert large_kib() >= before + SIZE // 2048
        assert memory[:] == content


@needs_large_pages
def test_a_forked_process_keeps_its_large_pages_when_it_writes():
    def fallen(*arguments):
        printed = subprocess.run(
            [sys.executable, "-c", SHARES, *arguments], capture_output=True, text=True, check=True, timeout=60
        ).stdout.split()
        return [int(number) for number in printed]

    falls, kept = fallen("collapse")
    assert kept == SIZE - SIZE // (1 << 20)
    assert falls == 0
    assert fallen("leave")[0] >= SIZE // 2048, "shared ones fall apart: else there is nothing to do"
