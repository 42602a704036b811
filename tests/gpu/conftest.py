"""The GPU suite skips, with the reason, where there is no device."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture
def device():
    try:
        from native import cuda
    except ImportError as error:
        pytest.skip(f"native module: {error}")
    if not cuda.available():
        pytest.skip("no CUDA device, no driver, or native._cuda is not built")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    yield torch.device("cuda", 0)
    gc.collect()
    torch.cuda.synchronize()  # a context that a test broke fails here, not in the next test
