"""One loop thread for all gloo groups of a rank.

SGLang makes about ten groups, each with this rank alone as its member: what crosses ranks is the data plane's. torch
gives every gloo group a device of its own, whose thread wakes a hundred times a second, and two more for collectives:
on a host of many ranks thousands of wake-ups a second for nothing (measured: 2 % of a core for each idle rank).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed import distributed_c10d

from worker.engine.errors import SeamError

if TYPE_CHECKING:
    from datetime import timedelta

_TARGET = "torch.distributed.distributed_c10d.ProcessGroupGloo"


def share_loop() -> None:
    """Make every gloo group of this process, from now on, use one device and one thread for its collectives.

    Raises:
        SeamError: torch differs from the build this was written against.
    """
    try:
        device = distributed_c10d.ProcessGroupGloo.create_default_device()
        distributed_c10d.ProcessGroupGloo = _sharing(distributed_c10d.ProcessGroupGloo, device)
    except AttributeError as error:
        raise SeamError(_TARGET, str(error)) from error


def _sharing(original: Any, device: Any) -> type:
    class SharedLoopGloo(original):  # type: ignore[misc]
        """Gloo on a shared device; torch's own constructor takes no options (distributed_c10d.py:2169)."""

        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = original._Options()  # noqa: SLF001 - has no public name
            options._devices, options._threads, options._timeout = [device], 1, timeout  # noqa: SLF001
            super().__init__(store, rank, size, options)

    return SharedLoopGloo
