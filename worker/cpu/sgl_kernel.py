"""Stands in for SGLang's CUDA kernel wheel on a machine without a GPU.

SGLang imports names from it when ``SGLANG_USE_CPU_ENGINE=1`` (sglang/srt/mem_cache/allocation.py:46 is the first), but
with the torch-native attention backend it runs one of them. It must not register ``torch.ops.sgl_kernel``: the absence
of ``convert_weight_packed`` there selects SGLang's native fall-backs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__path__: list[str] = []


def assign_req_to_token_pool_cpu(  # noqa: PLR0917 - SGLang calls it so
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write the new KV locations of each request into its row of the pool.

    Shapes: indices and offsets [requests]; ``req_to_token`` [pool, ``pool_len``]; ``out_cache_loc`` [Σ (end − start)],
    request after request.
    """
    del pool_len
    taken = 0
    rows = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in rows:
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start].to(req_to_token.dtype)
        taken += end - start


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"sgl_kernel.{name} needs a GPU. Remedy: start the rank with the flags of worker.engine.launch "
            "(torch_native attention, pytorch sampling), or on a machine with a GPU"
        )

    return missing
