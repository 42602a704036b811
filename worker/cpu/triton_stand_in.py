"""Lets ``import triton`` succeed where no kernel will ever be compiled.

SGLang carries a stand-in for macOS (sglang/_platform_stubs.py); its installer insists on an Apple machine, so the parts
are put together here. Names that are used as classes must be classes: the stand-in's catch-all would make them modules.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


class _Constexpr:
    """``tl.constexpr``: an annotation, and a wrapper of a value."""

    def __init__(self, value: object = None) -> None:
        self.value = value


class _OutOfResourcesError(Exception):
    """``triton.runtime.autotuner.OutOfResources`` and ``PTXASError``: caught by torch, never raised here."""


def _classes(base: type) -> dict[str, dict[str, Any]]:
    """Module → the names in it that torch 2.13 or SGLang subclass, call or test against."""
    return {
        "triton.language": {"constexpr": _Constexpr},
        "triton.language.extra": {},
        "triton.language.extra.libdevice": {},
        "triton.runtime": {},
        "triton.runtime.jit": {"JITFunction": type("JITFunction", (), {}), "KernelInterface": base},
        "triton.runtime.cache": {"triton_key": lambda: "triton-stand-in"},
        "triton.runtime.autotuner": {"OutOfResources": _OutOfResourcesError, "PTXASError": _OutOfResourcesError},
        "triton.compiler": {"CompiledKernel": base},
        "triton.compiler.compiler": {"ASTSource": base, "triton_key": lambda: "triton-stand-in"},
        "triton.backends": {},
        "triton.backends.compiler": {"GPUTarget": base},
    }


def _parts() -> ModuleType:
    """SGLang's file, loaded by path: importing it by name would import all of SGLang first."""
    sglang = importlib.util.find_spec("sglang")
    if sglang is None or sglang.origin is None:
        raise ImportError("sglang is not installed. Remedy: tools/test installs tools/locks/engine-cpu.txt")
    spec = importlib.util.spec_from_file_location(
        "eep_sglang_platform_stubs", Path(sglang.origin).with_name("_platform_stubs.py")
    )
    if spec is None or spec.loader is None:
        raise ImportError("sglang/_platform_stubs.py is gone. Remedy: install the pinned sglang 0.5.23, or triton")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes every ``triton…`` module a stand-in.

    SGLang's own finder returns specs without a loader, which replaces its stand-in with an empty module when the
    import statement, not attribute access, comes first.
    """

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self._members: dict[str, dict[str, Any]] = {
            "triton": {
                "__version__": "3.0.0",
                "cdiv": parts._cdiv,  # noqa: SLF001 - SGLang's own; the version is pinned
                "next_power_of_2": parts._next_power_of_2,  # noqa: SLF001
                "Config": parts._Config,  # noqa: SLF001
            },
            **_classes(parts._StubBase),  # noqa: SLF001
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for ``triton`` and whatever is below it."""
        del path, target
        if fullname.partition(".")[0] != "triton":
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in whose attributes are stand-ins."""
        module: ModuleType = self._parts._MockModule(spec.name)  # noqa: SLF001
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Fill in the names that must be real."""
        vars(module).update(self._members.get(module.__name__, {}))
        for name in self._members:
            parent, _, child = name.rpartition(".")
            if parent == module.__name__:
                setattr(module, child, importlib.import_module(name))


def install() -> ModuleSpec | None:
    """Register the stand-ins; the spec of ``triton``."""
    finder = _StandIns(_parts())
    sys.meta_path.insert(0, finder)
    return finder.find_spec("triton")
