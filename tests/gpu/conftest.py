"""The GPU suite skips, with the reason, where there is no device.

A device is lent for minutes, so a test that hangs or breaks its context must cost only itself: a watchdog ends the
process, and where ``EEP_GPU_RESULTS`` names a file every start and every outcome is in it at once. The next start goes
on behind the last test of that file (``tools/gpu`` does that).
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
from pathlib import Path

import pytest

# Read when CUDA starts: streams on one hardware queue wait for each other, ranks that wait for each other must not.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

RESULTS = os.environ.get("EEP_GPU_RESULTS")
CONTEXT_BROKEN = 70
"""Exit status: an error of the device sticks to the process, nothing after it means anything."""
TEARDOWN_S = 60


@pytest.fixture
def device(request):
    try:
        from native import cuda
    except ImportError as error:
        pytest.skip(f"native module: {error}")
    if not cuda.available():
        pytest.skip("no CUDA device, no driver, or native._cuda is not built")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    # A thread of C: a call that never comes back from the driver holds up Python's own signals.
    limit = request.node.get_closest_marker("timeout").args[0]
    faulthandler.dump_traceback_later(limit + 10, exit=True)
    try:
        yield torch.device("cuda", 0)
        gc.collect()
        torch.cuda.synchronize()  # a context that a test broke fails here, not in the next test
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node, call, report):
    if RESULTS is not None:  # pytest has just disarmed the watchdog, and what a failed test left may hang
        faulthandler.dump_traceback_later(TEARDOWN_S, exit=True)


def _note(**line):
    with Path(RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def pytest_collection_modifyitems(config, items):
    if RESULTS is None or not Path(RESULTS).exists():
        return
    lines = [json.loads(line) for line in Path(RESULTS).read_text(encoding="utf-8").splitlines()]
    before = {line["started"] for line in lines if "started" in line}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
    items[:] = [item for item in items if item.nodeid not in before]


def pytest_runtest_logstart(nodeid, location):
    if RESULTS is not None:
        _note(started=nodeid)


def pytest_runtest_logreport(report):
    if RESULTS is None or (report.when != "call" and report.passed):
        return
    _note(
        test=report.nodeid,
        phase=report.when,
        outcome=report.outcome,
        seconds=round(report.duration, 2),
        properties=dict(report.user_properties),
        why=report.longreprtext[-2000:],
    )
    if report.failed:
        print(f"\n{report.longreprtext}", flush=True)  # noqa: T201  # now: what follows may end the process
    if report.failed and report.when == "teardown":
        os._exit(CONTEXT_BROKEN)
