"""Finding the native module: built or not, with a device or without."""

from __future__ import annotations

from typing import Any


class CudaUnavailableError(RuntimeError):
    """The CUDA backend cannot run here; the message says what is missing and how to get it."""


class OperationError(RuntimeError):
    """An operation did not end within its hard deadline: the device is stuck or gone."""


def available() -> bool:
    """Whether the native module was built and a device is there."""
    try:
        from native import _cuda  # noqa: PLC0415  # built only where a CUDA compiler is
    except ImportError:
        return False
    return _cuda.device_count() > 0


def module() -> Any:
    """The native module.

    Raises:
        CudaUnavailableError: it is not built, or there is no device.
    """
    try:
        from native import _cuda  # noqa: PLC0415  # built only where a CUDA compiler is
    except ImportError as error:
        raise CudaUnavailableError(
            "native._cuda is not built; install CUDA 12.5 or newer, set CUDACXX to its nvcc and build again"
        ) from error
    if _cuda.device_count() == 0:
        raise CudaUnavailableError("no CUDA device or no driver: nvidia-smi must list one")
    return _cuda
