"""Puts what a process holds into large pages: of those the kernel has far fewer to give back when the process dies.

A dead rank's memory is given back on the cores that the survivors recover on. What malloc hands out is in large pages
already (``GLIBC_TUNABLES``); what Python takes for itself is not, and that is half of an engine's memory.
"""

from __future__ import annotations

import ctypes
import logging
import re
from pathlib import Path

log = logging.getLogger("eep.engine")

_COLLAPSE = 25
"""MADV_COLLAPSE, Linux 6.1."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, Linux 5.14: as if something were written, of which nothing changes."""
_SMALL = 4 << 10
_LARGE = 2 << 20
_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0\s*(?:\[heap\])?$")


def collapse() -> int:
    """Collapse private anonymous memory into large pages; bytes that are in one now.

    A large page that is shared with the template (``worker.engine.template``) counts as one, and would fall apart at
    the first write: so there is one before.

    A kernel that cannot, or has none to give, leaves them as they are: nothing depends on it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    done = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if (found := _ANONYMOUS.match(line)) is None:
            continue
        first, end = -(-int(found[1], 16) // _LARGE) * _LARGE, int(found[2], 16) // _LARGE * _LARGE
        for start in range(first, end, _LARGE):
            libc.madvise(start, _SMALL, _POPULATE_WRITE)
            done += _LARGE if libc.madvise(start, _LARGE, _COLLAPSE) == 0 else 0
    return done
