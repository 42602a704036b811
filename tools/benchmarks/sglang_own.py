"""SGLang's own expert parallelism over gloo on CPU, to compare with: ``python -m tools.benchmarks.sglang_own …``.

Two things of SGLang 0.5.23 break there. They are mended here, for the benchmark; the product does not meet them.
Children are spawned and import this module again as their main module, so that the mending reaches every process.
"""

from __future__ import annotations

import importlib
import runpy
from typing import Any

import torch


def _experts_of_this_rank(layer: Any, x: torch.Tensor, topk_output: Any, moe_runner_config: Any) -> torch.Tensor:
    """fused_moe_native.py:77 indexes with −1, which is what SGLang's dispatcher gives for experts of other ranks."""
    weights, ids, _ = topk_output
    flat = ids.reshape(-1)
    ours = torch.nonzero(flat >= 0).view(-1)
    ours = ours[flat[ours].argsort(stable=True)]
    counts = torch.bincount(flat[ours], minlength=layer.w13_weight.shape[0]).tolist()
    rows = x[ours // ids.shape[1]]
    outputs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            gate, up = torch.nn.functional.linear(rows[start : start + count], layer.w13_weight[expert]).chunk(2, -1)
            hidden = torch.nn.functional.silu(gate) * up
            outputs.append(torch.nn.functional.linear(hidden, layer.w2_weight[expert]))
            start += count
    result = torch.zeros_like(x)
    if outputs:
        scaled = torch.cat(outputs) * weights.reshape(-1, 1)[ours].to(x.dtype)
        result.index_add_(0, ours // ids.shape[1], scaled)
    del moe_runner_config
    return result


def mend() -> None:
    """Patch SGLang in this process."""
    native: Any = importlib.import_module("sglang.srt.layers.moe.fused_moe_native")
    native.moe_forward_native = _experts_of_this_rank
    attention: Any = importlib.import_module("sglang.srt.layers.attention.torch_native_backend")
    # forward_batch_info.py:2014 asks every backend on CPU for it
    attention.TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = lambda _: 1


mend()

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")  # sys.modules keeps this module as the main one
