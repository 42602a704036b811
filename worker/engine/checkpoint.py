"""Experts one by one out of a safetensors checkpoint.

The files are mapped, not read: opening a checkpoint costs its headers, and an expert costs its own pages. Neither torch
nor safetensors is needed, so that the agent can use this too. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.engine.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

_EXPERT = re.compile(
    r"(?:^|\.)layers\.(?P<layer>\d+)\.(?:.*\.)?experts\.(?P<expert>\d+)\.(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight(?P<scale>_scale_inv)?$"
)
_PARTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
FP8 = "float8_e4m3fn"
SCALE_BLOCK = 128
"""Rows, and columns, of an fp8 matrix that share a scale."""
PADDING = 32
"""On a CPU SGLang rounds an expert's intermediate size up to a multiple of this (update_config.py:290)."""


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class ExpertTensors:
    """The three matrices of one expert: gate and up [intermediate, hidden], down [hidden, intermediate].

    fp8 experts have a scale for each block of 128 × 128 values beside each of them.
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_scale: Tensor | None = None
    up_scale: Tensor | None = None
    down_scale: Tensor | None = None


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of every expert of a model, and the dtype its slots hold.

    A slot is two blocks: w13 = [gate rows; up rows] [2 × intermediate, hidden], and w2 [hidden, intermediate]; with fp8
    each is followed by its scales, float32, in the same order.
    """

    hidden: int
    intermediate: int
    dtype: str
    """``float32``, ``bfloat16`` or ``float8_e4m3fn``."""

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return {"float32": 4, "bfloat16": 2, FP8: 1}[self.dtype]

    @property
    def w13_scale_bytes(self) -> int:
        """Bytes of the scales at the end of the gate and up block."""
        return 2 * self._scales(self.intermediate, self.hidden)

    @property
    def w2_scale_bytes(self) -> int:
        """Bytes of the scales at the end of the down block."""
        return self._scales(self.hidden, self.intermediate)

    def _scales(self, rows: int, columns: int) -> int:
        return 0 if self.dtype != FP8 else -(-rows // SCALE_BLOCK) * -(-columns // SCALE_BLOCK) * 4

    @property
    def w13_bytes(self) -> int:
        """Bytes of the gate and up block."""
        return 2 * self.intermediate * self.hidden * self.itemsize + self.w13_scale_bytes

    @property
    def w2_bytes(self) -> int:
        """Bytes of the down block."""
        return self.hidden * self.intermediate * self.itemsize + self.w2_scale_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of one expert."""
        return self.w13_bytes + self.w2_bytes


class Checkpoint:
    """A folder of safetensors files whose experts are stored one by one."""

    def __init__(self, path: Path) -> None:
        """Read the headers.

        Raises:
            CheckpointError: no safetensors there, a broken header, or an expert without its three matrices.
        """
        self.path = path
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"checkpoint {path}: no *.safetensors. Remedy: name the folder of a checkpoint")
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}
        found: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, tensor in (pair for file in files for pair in _tensors(file)):
            match = _EXPERT.search(name)
            if match is not None:
                key = int(match["layer"]), int(match["expert"])
                found.setdefault(key, {})[_PARTS[match["part"]] + ("_scale" if match["scale"] else "")] = tensor
        if not found:
            raise CheckpointError(
                f"checkpoint {path}: no tensor named …layers.L.…experts.E.(gate_proj|up_proj|down_proj).weight. "
                "Remedy: export the experts one by one, not fused"
            )
        for (layer, expert), parts in found.items():
            if len(parts) not in {3, 6} or not {"gate", "up", "down"} <= set(parts):
                raise CheckpointError(
                    f"checkpoint {path}: layer {layer} expert {expert} has only {sorted(parts)} of gate, up, down"
                )
        self.experts = {key: ExpertTensors(**parts) for key, parts in found.items()}

    @cached_property
    def layers(self) -> list[int]:
        """Numbers of the layers that have experts, as the checkpoint counts them."""
        return sorted({layer for layer, _ in self.experts})

    @cached_property
    def n_experts(self) -> int:
        """Experts of each layer."""
        return 1 + max(expert for _, expert in self.experts)

    def shape(self, dtype: str) -> ExpertShape:
        """Sizes of an expert when slots hold ``dtype``, padded as SGLang pads them."""
        gate = next(iter(self.experts.values())).gate
        intermediate = -(-gate.shape[0] // PADDING) * PADDING
        return ExpertShape(hidden=gate.shape[1], intermediate=intermediate, dtype=dtype)

    @cached_property
    def identity(self) -> str:
        """Changes when a file of the checkpoint does: SHA-256 over names, sizes, times and headers."""
        digest = hashlib.sha256()
        for file in sorted(self.path.glob("*.safetensors")):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(8 + _header_length(stream.read(8), file)))
        return digest.hexdigest()

    def read(
        self, layer: int, expert: int, w13: npt.NDArray[np.uint8], w2: npt.NDArray[np.uint8], *, dtype: str
    ) -> None:
        """Write one expert as a slot holds it: uint8 [ExpertShape.w13_bytes] and [ExpertShape.w2_bytes].

        Raises:
            CheckpointError: no such expert, a shape or dtype that does not fit, or a file that is gone or cut short.
        """
        tensors = self.experts.get((layer, expert))
        if tensors is None:
            raise CheckpointError(f"checkpoint {self.path}: no expert {expert} in layer {layer}")
        shape = self.shape(dtype)
        if (w13.nbytes, w2.nbytes) != (shape.w13_bytes, shape.w2_bytes):
            raise CheckpointError(
                f"checkpoint {self.path}: its experts fill blocks of {shape.w13_bytes} and {shape.w2_bytes} bytes, "
                f"the slot has {w13.nbytes} and {w2.nbytes}"
            )
        matrices, scales = np.split(w13, [w13.nbytes - shape.w13_scale_bytes])
        half = matrices.nbytes // 2
        self._convert(tensors.gate, matrices[:half], (shape.intermediate, shape.hidden), dtype)
        self._convert(tensors.up, matrices[half:], (shape.intermediate, shape.hidden), dtype)
        matrix, scale = np.split(w2, [w2.nbytes - shape.w2_scale_bytes])
        self._convert(tensors.down, matrix, (shape.hidden, shape.intermediate), dtype)
        if dtype == FP8:
            half = scales.nbytes // 2
            self._scale(tensors.gate_scale, scales[:half], layer, expert)
            self._scale(tensors.up_scale, scales[half:], layer, expert)
            self._scale(tensors.down_scale, scale, layer, expert)

    def _scale(self, tensor: Tensor | None, out: npt.NDArray[np.uint8], layer: int, expert: int) -> None:
        """The scales of one fp8 matrix, as they are stored."""
        if tensor is None:
            raise CheckpointError(f"checkpoint {self.path}: layer {layer} expert {expert} has no weight_scale_inv")
        stored = self._bytes(tensor)
        if tensor.dtype != "F32" or stored.nbytes != out.nbytes:
            raise CheckpointError(
                f"checkpoint {self.path}: scales {tensor.dtype} {tensor.shape} of layer {layer} expert {expert}; "
                f"needed are F32, one for each {SCALE_BLOCK} × {SCALE_BLOCK} values"
            )
        out[:] = stored

    def _convert(self, tensor: Tensor, out: npt.NDArray[np.uint8], shape: tuple[int, int], dtype: str) -> None:
        """Fill ``out``, a matrix of ``shape``; what the stored one does not cover becomes 0."""
        stored = self._bytes(tensor)
        if tensor.shape == shape:
            convert(stored, tensor.dtype, out, dtype)
            return
        if any(small > large for small, large in zip(tensor.shape, shape, strict=True)):
            raise CheckpointError(f"checkpoint {self.path}: a matrix of {tensor.shape} for a slot of {shape}")
        itemsize = out.nbytes // (shape[0] * shape[1])
        numbers: npt.NDArray[np.uint8] = np.empty(tensor.shape[0] * tensor.shape[1] * itemsize, dtype=np.uint8)
        convert(stored, tensor.dtype, numbers, dtype)
        rows = out.reshape(shape[0], shape[1] * itemsize)
        rows[:] = 0
        rows[: tensor.shape[0], : tensor.shape[1] * itemsize] = numbers.reshape(tensor.shape[0], -1)

    def _bytes(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        mapped = self._maps.get(tensor.file)
        try:
            if mapped is None:
                with tensor.file.open("rb") as stream:
                    mapped = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
                self._maps[tensor.file] = mapped
            elif not tensor.file.exists():
                raise FileNotFoundError(tensor.file)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint {tensor.file}: {error}. Remedy: put the file back") from error
        if mapped.nbytes < tensor.stop:
            raise CheckpointError(
                f"checkpoint {tensor.file}: {mapped.nbytes} bytes, but a tensor ends at {tensor.stop}"
            )
        return mapped[tensor.start : tensor.stop]


def convert(source: npt.NDArray[np.uint8], stored: str, out: npt.NDArray[np.uint8], dtype: str) -> None:
    """Copy numbers as ``dtype``; rounding is to nearest even, as torch rounds.

    Raises:
        CheckpointError: a stored dtype that is none of F32, BF16, F16.
    """
    if (stored, dtype) in {("F32", "float32"), ("BF16", "bfloat16"), ("F8_E4M3", FP8)}:
        out[:] = source
    elif dtype == "float32" and stored == "BF16":
        np.left_shift(source.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
    elif dtype == "float32" and stored == "F16":
        out.view(np.float32)[:] = source.view(np.float16)
    elif dtype == "bfloat16" and stored in {"F32", "F16"}:
        numbers = np.ascontiguousarray(source.view(np.float32 if stored == "F32" else np.float16), dtype=np.float32)
        bits = numbers.view(np.uint32)
        out.view(np.uint16)[:] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    else:
        raise CheckpointError(
            f"checkpoint stores {stored}, slots hold {dtype}: no conversion. Remedy: use F32, BF16, F16"
        )


def _header_length(first: bytes, file: Path) -> int:
    if len(first) != 8:
        raise CheckpointError(f"checkpoint {file}: {len(first)} bytes, too short for a header")
    (length,) = struct.unpack("<Q", first)
    return int(length)


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with file.open("rb") as stream:
            length = _header_length(stream.read(8), file)
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {file}: header does not read: {error}") from error
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            yield name, Tensor(file, entry["dtype"], tuple(entry["shape"]), start, stop)
