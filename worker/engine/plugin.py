"""SGLang's plugin entry point (``sglang.srt.plugins``): puts the hooks in place, or ends the process with one line.

Every process of a rank calls ``register`` and does its part. Without ``EEP_ENGINE_SETTINGS`` SGLang is left alone, but
for what it needs to run on a CPU.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from native import _native
from worker.cpu import boot, seeded
from worker.engine import seams, settings
from worker.engine.errors import EngineError
from worker.engine.support import check_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

_EX_CONFIG = 78
SERVER_TITLE = "sglang::server"
"""Name of the process that answers HTTP."""


def leave(error: EngineError) -> NoReturn:
    """One clear line, and out: SGLang would log the error and go on without us."""
    sys.stderr.write(f"eep: {error}\n")
    sys.stderr.flush()
    os._exit(_EX_CONFIG)


def or_leave(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose own errors end the process."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except EngineError as error:
            leave(error)

    return guarded


@or_leave
def register() -> None:
    """Called by SGLang in each of its processes, before it builds anything."""
    if os.environ.get(boot.ENVIRONMENT) == "1":
        _adapt_to_cpu()
    chosen = settings.from_environment()
    if chosen is None:
        return
    if chosen.device == "cpu":  # what a driver makes of memory that outlives its process is not known
        _native.leave_heir()
    if multiprocessing.parent_process() is None:
        _register_main(chosen)
    elif _role().startswith("run_scheduler_process"):
        from worker.engine import engine  # noqa: PLC0415 - imports torch and SGLang's model code

        engine.register(chosen)


def _adapt_to_cpu() -> None:
    if multiprocessing.parent_process() is None:
        seeded.prepare_server(sys.argv)
    elif _role().startswith("run_scheduler_process"):
        seeded.prepare_scheduler()


def _role() -> str:
    """The function that SGLang's launcher gave this process to run."""
    target = getattr(multiprocessing.current_process(), "_target", None)
    return str(getattr(target, "__name__", ""))


def _register_main(chosen: settings.EngineSettings) -> None:
    Path("/proc/self/comm").write_text(SERVER_TITLE)  # SGLang gives titles to its other processes only
    from worker.engine.front import Front  # noqa: PLC0415 - imports the HTTP stack

    front = Front(chosen)

    @or_leave
    def before_serving(server_args: Any, *_args: Any, **_kwargs: Any) -> None:
        check_arguments(server_args, device=chosen.device)
        front.mount()

    for seam in seams.SCHEDULER:
        seam.check()  # here already, where the reason is not followed by SGLang's story of a dead child
    seams.install([(seams.SERVE, before_serving)])
