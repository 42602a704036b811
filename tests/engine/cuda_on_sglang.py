"""Run by test_cuda_parts in a process with SGLang: its signatures, its formats, and its own functions on our output."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from types import SimpleNamespace

import torch
from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig, PermuteMethodPool
from sglang.srt.layers.moe.moe_runner.triton import _topk_ids_may_be_nonlocal
from sglang.srt.layers.moe.token_dispatcher.base import BaseDispatcher, DispatchOutputChecker
from sglang.srt.layers.moe.token_dispatcher.deepep import DeepEPLLCombineInput, DeepEPLLDispatchOutput
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput, StandardDispatchOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.common import dispose_tensor

from worker.engine import seams
from worker.engine.cuda.dispatcher import CudaDispatcher, MaskedDispatcher, masked_for_deep_gemm, pairs_for_triton
from worker.engine.cuda.routing import StepWords
from worker.engine.support import _BY_DEVICE

PAIRS, SLOTS, CAPACITY, HIDDEN = 12, 3, 8, 256


class Recorded:
    """A round of one rank with itself, in plain torch: what the data plane does to tensors, without a device."""

    def __init__(self) -> None:
        self.rows = torch.randn(PAIRS, HIDDEN).bfloat16()
        self.slots = torch.tensor([0, 2, 1, 0] + [-1] * (PAIRS - 4), dtype=torch.int32)
        self.weights = torch.rand(PAIRS)
        self.calls: list[tuple[object, ...]] = []

    def dispatch(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Recorded:
        assert x.is_contiguous()
        assert ids.is_contiguous()
        assert weights.dtype is torch.float32
        self.calls.append((layer, x.shape, ids.clone()))
        return self

    def combine(self, y: torch.Tensor, out: torch.Tensor, *, weighted: bool) -> None:
        self.calls.append((weighted, y.shape))
        out.fill_(3)


def pairs() -> None:
    """bf16 through triton: one row a pair, -1 where no row came."""
    got = pairs_for_triton(Recorded())
    assert isinstance(got, StandardDispatchOutput)
    assert DispatchOutputChecker.format_is_standard(got)
    assert got.topk_output.topk_ids.shape == got.topk_output.topk_weights.shape == (PAIRS, 1)
    config = MoeRunnerConfig(num_experts=None, num_local_experts=SLOTS)
    assert _topk_ids_may_be_nonlocal(config), "triton would not skip room without a row"


def masked() -> None:
    """fp8 through DeepGEMM: SGLang's own step from this format to its runner, and its habit of freeing inputs."""
    rows = torch.randn(SLOTS, CAPACITY, HIDDEN).to(torch.float8_e4m3fn)
    scales = torch.rand(SLOTS, HIDDEN // 128, CAPACITY).transpose(1, 2)
    arrived = SimpleNamespace(rows=rows, scales=scales, counts=torch.tensor([2, 0, 5], dtype=torch.int32))
    with torch.inference_mode():
        got = masked_for_deep_gemm(arrived, torch.zeros(4, 2), torch.zeros(4, 2), expected=3)
        assert isinstance(got, DeepEPLLDispatchOutput)
        assert got.format.is_deepep_ll()
        import sglang.srt.layers.moe.moe_runner.deep_gemm as runner

        state: dict[str, object] = {}
        convert = PermuteMethodPool.get_pre_permute("deepep_ll", "deep_gemm")
        given = convert(got, None, MoeRunnerConfig(), state)
        assert given.use_masked_gemm
        assert given.masked_m is arrived.counts
        assert given.expected_m == 3
        assert given.hidden_states.shape == (SLOTS, CAPACITY, HIDDEN)
        assert given.hidden_states_scale.stride() == (CAPACITY * (HIDDEN // 128), 1, CAPACITY)
        for tensor in (given.hidden_states, given.hidden_states_scale):
            dispose_tensor(tensor)
        assert rows.shape == (SLOTS, CAPACITY, HIDDEN), "SGLang disposed of the data plane's rows"
        assert scales.shape == (SLOTS, CAPACITY, HIDDEN // 128)
        back = PermuteMethodPool.get_post_permute("deep_gemm", "deepep_ll")
        output = runner.DeepGemmRunnerOutput(hidden_states=torch.zeros(SLOTS, CAPACITY, HIDDEN))
        assert isinstance(back(output, None, MoeRunnerConfig(), state), DeepEPLLCombineInput)


def dispatchers() -> None:
    """One layer's dispatch and combine, with SGLang's base class around them."""
    tokens = torch.randn(4, HIDDEN).bfloat16()
    routing = SimpleNamespace(topk_ids=torch.tensor([[0, 1]] * 4), topk_weights=torch.rand(4, 2))
    for made in (CudaDispatcher(1), MaskedDispatcher(1, expected=2, scale=2.0)):
        plane = Recorded()
        words = StepWords(layers=2, experts=6, best_effort=True, device=torch.device("cpu"))
        words.write(((1, 1),), rows=3)
        made.use(words)
        made.attach(plane)
        assert isinstance(made, BaseDispatcher)
        if isinstance(made, MaskedDispatcher):
            made.lay_out = lambda arrived, *_: arrived
        made.dispatch(hidden_states=tokens, topk_output=routing)
        out = made.combine(combine_input=StandardCombineInput(plane.rows))
        layer, shape, ids = plane.calls[0]
        assert (layer, shape) == (1, tokens.shape)
        assert ids.tolist() == [[0, -1]] * 3 + [[-1, -1]]
        assert plane.calls[1] == (made.weighted, plane.rows.shape)
        assert float(out[0, 0]) == (6.0 if isinstance(made, MaskedDispatcher) else 3.0)
        assert made.left_out == 3


def signatures() -> None:
    """Every place of SGLang that is hooked or asked, on both devices."""
    for seam in (*seams.SCHEDULER, seams.DECODE_GRAPH):
        seam.check()
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    asked = ["--device", "cuda", "--moe-runner-backend", "deep_gemm", "--cuda-graph-backend-prefill", "disabled"]
    known, rest = parser.parse_known_args([*asked, "--cuda-graph-max-bs-decode", "64", "--model-path", "m"])
    assert not rest
    assert known.cuda_graph_max_bs_decode == 64
    for name, allowed, _ in _BY_DEVICE["cuda"]:
        assert getattr(known, name) in allowed, name
    fields = {field.name for field in dataclasses.fields(MoeRunnerConfig)}
    assert {"runner_backend", "num_experts", "num_local_experts", "top_k", "routed_scaling_factor"} <= fields
    assert {"batch_size", "input_ids", "forward_mode"} <= set(inspect.get_annotations(ForwardBatch))


for check in (pairs, masked, dispatchers, signatures):
    check()
print("held")  # noqa: T201  # what the caller looks for
