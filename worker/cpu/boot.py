"""Installs the shims as import hooks, before SGLang is imported, in every process of a rank.

SGLang's children are spawned, and its plugins load after the imports that fail; so the interpreter itself starts this
through ``eep_cpu.pth`` (site-packages) when ``EEP_CPU_SHIMS=1``. Nothing heavy is imported here: the hooks act when
SGLang reaches the module they stand for.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

ENVIRONMENT = "EEP_CPU_SHIMS"
"""Set to 1 by the launcher for ranks without a GPU."""

_KEPT: list[object] = []


class Shims(importlib.abc.MetaPathFinder):
    """Answers for the modules below, once each, and leaves every other import alone.

    | module | breaks without it |
    |---|---|
    | sgl_kernel | sglang/srt/mem_cache/allocation.py:46 (`from sgl_kernel import …`: the wheel is CUDA only) |
    | triton | sglang/srt/utils/common.py:91 (`import triton`: a gigabyte that a CPU never runs) |
    | torchvision | torchvision/_meta_registrations.py:163, :177 (registers fakes of operators of its CUDA library) |
    """

    def __init__(self) -> None:
        self._once: dict[str, Callable[[], ModuleSpec | None]] = {
            "sgl_kernel": _sgl_kernel,
            "triton": _triton,
            "torchvision": _torchvision,
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The stand-in's spec, the real one after its preparation, or None for every other module."""
        del path, target
        answer = self._once.pop(fullname, None)
        return None if answer is None else answer()


def _sgl_kernel() -> ModuleSpec | None:
    return importlib.util.spec_from_file_location("sgl_kernel", Path(__file__).with_name("sgl_kernel.py"))


def _triton() -> ModuleSpec | None:
    from worker.cpu import triton_stand_in  # noqa: PLC0415 - only when triton is wanted

    return triton_stand_in.install()


def _torchvision() -> ModuleSpec | None:
    import torch  # noqa: PLC0415 - only when torchvision is wanted

    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)  # dropping a Library takes its schemas away again
    return importlib.util.find_spec("torchvision")


def install() -> None:
    """Put the hooks in place; a second call does nothing."""
    if not any(isinstance(finder, Shims) for finder in sys.meta_path):
        sys.meta_path.insert(0, Shims())
