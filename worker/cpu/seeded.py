"""Seeded sampling on a CPU: lets ``--enable-deterministic-inference`` through where SGLang knows only accelerators.

A resumed request draws the same tokens on another rank if a draw depends on (seed, position) alone, which is what the
flag makes of SGLang's sampler (``layers/sampler.py: multinomial_with_seed``). Three things stand in its way here:

| in SGLang | breaks without the change |
|---|---|
| ``arg_groups/choices.py`` | ``torch_native`` is not on the list of deterministic attention backends (it is one) |
| ``ModelRunner.maybe_enable_batch_invariant_mode`` | its kernels are Triton's: "No supported accelerator" |
| ``kernels/ops/sampling/murmur_hash.py`` | the hash is an operator of the CUDA wheel; the same one in torch stands in |

Sums of the native backend are not invariant to the batch, so a draw within float32 rounding of two tokens may differ.
The sampler is also compiled (``torch.compile``), which would stop all ranks for a minute at the first draw: not here.
Without the flag nothing is touched.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from worker.engine import seams

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

FLAG = "--enable-deterministic-inference"
_WANTED = "EEP_CPU_SEEDED"
_BACKEND = "torch_native"
_MASK = 0xFFFFFFFF
_KEPT: list[Any] = []
"""Operators live as long as the library object that defined them."""
INVARIANT = seams.Seam(
    "sglang.srt.model_executor.model_runner.ModelRunner.maybe_enable_batch_invariant_mode", ("self",), "REPLACE"
)


def prepare_server(arguments: Sequence[str]) -> None:
    """In the process that reads ``arguments``: accept the flag with the native backend, and keep the radix cache."""
    if FLAG not in arguments:
        return
    os.environ[_WANTED] = "1"  # for the children
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from sglang.srt.arg_groups import choices  # noqa: PLC0415 - only in SGLang's own processes

    if _BACKEND not in choices.DETERMINISTIC_ATTENTION_BACKEND_CHOICES:
        choices.add_deterministic_attention_backend_choices([_BACKEND])
        choices.add_radix_supported_deterministic_attention_backend_choices([_BACKEND])


def prepare_scheduler() -> None:
    """In the process that holds the model: leave the batch-invariant kernels alone, bring the hash.

    Raises:
        SeamError: SGLang differs from the build this was written against.
    """
    if os.environ.get(_WANTED) != "1":
        return
    seams.install([(INVARIANT, _nothing)])
    import torch  # noqa: PLC0415 - only where the model is

    library = torch.library.Library("sgl_kernel", "FRAGMENT")
    library.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor col_indices) -> Tensor")
    library.impl("murmur_hash32_cpu", murmur_hash32, "CPU")
    _KEPT.append(library)


def murmur_hash32(seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 (32 bits) of (seed, position, column), four little-endian words each.

    Args:
        seed: [rows], 64 bits.
        positions: [rows].
        col_indices: [columns].

    Returns:
        uint32 [rows, columns]; the arithmetic is done in int64, whose products wrap without touching the low half.
    """
    import torch  # noqa: PLC0415 - only where the model is

    words = seed.to(torch.int64)
    state = torch.zeros_like(words)
    for word in (words & _MASK, (words >> 32) & _MASK, positions.to(torch.int64) & _MASK):
        state = _mix(state, word)
    state = _mix(state.unsqueeze(1), col_indices.to(torch.int64).unsqueeze(0)) ^ 16
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _MASK
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _MASK
    return (state ^ (state >> 16)).to(torch.uint32)


def _mix(state: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    word = (_rotate((word * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK
    return (_rotate(state ^ word, 13) * 5 + 0xE6546B64) & _MASK


def _rotate(value: torch.Tensor, bits: int) -> torch.Tensor:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _nothing(_runner: Any) -> None:
    """There are no such kernels on a CPU."""
