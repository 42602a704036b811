"""What an engine holds is moved into large pages, and stays what it was."""

import mmap
from pathlib import Path

import pytest

from worker.engine.pages import collapse

SIZE = 8 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_kib():
    (line,) = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in line]
    return int(line.split()[1])


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="no large pages on this kernel")
def test_private_memory_is_in_large_pages_afterwards_and_unchanged():
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        content = bytes(range(256)) * (SIZE // 256)
        memory[:] = content
        before = large_kib()
        assert collapse() >= SIZE // 2, "all but the ends that fill no large page"
        assert large_kib() >= before + SIZE // 2048
        assert memory[:] == content
