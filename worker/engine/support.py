"""What an elastic rank refuses at start, each with a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.engine.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_REQUIRED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("tp_size", (1,), "start with --tp 1: attention is data parallel, experts are spread by the plugin"),
    ("pp_size", (1,), "start with --pp 1"),
    ("dp_size", (1,), "start with --dp 1: every rank is a server of its own"),
    ("ep_size", (1,), "start with --ep-size 1: experts are spread by the plugin"),
    ("moe_a2a_backend", ("none", None), "start with --moe-a2a-backend none"),
    ("speculative_algorithm", (None,), "leave --speculative-algorithm out"),
    ("enable_lora", (None, False), "leave --enable-lora out"),
    ("lora_paths", (None, [], ()), "leave --lora-paths out"),
    ("disaggregation_mode", ("null", None), "leave --disaggregation-mode out"),
    ("enable_eplb", (False, None), "leave --enable-eplb out: the control plane places experts"),
    ("ep_num_redundant_experts", (0, None), "leave --ep-num-redundant-experts out: give the rank more slots instead"),
    ("elastic_ep_backend", (None,), "leave --elastic-ep-backend out"),
    ("enable_two_batch_overlap", (False, None), "leave --enable-two-batch-overlap out"),
    ("enable_single_batch_overlap", (False, None), "leave --enable-single-batch-overlap out"),
    ("enable_pdmux", (False, None), "leave --enable-pdmux out"),
    ("dllm_algorithm", (None,), "leave --dllm-algorithm out"),
    ("disable_shared_experts_fusion", (True,), "start with --disable-shared-experts-fusion"),
    ("sleep_on_idle", (True,), "start with --sleep-on-idle, or an idle rank spins"),
    ("tokenizer_worker_num", (1, None), "start with --tokenizer-worker-num 1"),
)


_BY_DEVICE: dict[str, tuple[tuple[str, tuple[object, ...], str], ...]] = {
    "cpu": (
        ("device", ("cpu",), "set worker.device to the one SGLang uses"),
        ("quantization", (None,), "leave --quantization out and serve an unquantised checkpoint"),
    ),
    "cuda": (
        ("device", ("cuda",), "set worker.device to the one SGLang uses"),
        ("quantization", (None, "fp8"), "serve an unquantised checkpoint, or fp8 in blocks of 128 × 128"),
        ("moe_runner_backend", ("triton", "deep_gemm"), "start with --moe-runner-backend triton, or deep_gemm for fp8"),
        ("cuda_graph_backend_prefill", ("disabled",), "start with --cuda-graph-backend-prefill disabled"),
    ),
}


def check_arguments(server_args: Any, *, device: str) -> None:
    """Refuse SGLang options under which lockstep or slots would be wrong.

    Raises:
        UnsupportedError: names the option, its value and the remedy.
    """
    for name, allowed, remedy in (*_REQUIRED, *_BY_DEVICE[device]):
        value = getattr(server_args, name, None)
        if value not in allowed:
            raise UnsupportedError(f"--{name.replace('_', '-')}", value, remedy)


def check_plain_layer(layer: Any, *, parameters: Mapping[str, set[str]]) -> None:
    """Refuse a MoE layer whose weights or routing the slots cannot stand in for.

    Args:
        layer: SGLang's.
        parameters: names of the parameters, by the quantisation method that has just these.

    Raises:
        UnsupportedError: names what the layer has that slots do not.
    """
    layer_type = type(layer)
    if (layer_type.__module__, layer_type.__name__) != ("sglang.srt.layers.moe.fused_moe_triton.layer", "FusedMoE"):
        raise UnsupportedError("MoE layer class", layer_type.__qualname__, "serve a model whose experts are FusedMoE")
    method = type(layer.quant_method).__name__
    if method not in parameters:
        raise UnsupportedError("expert quantisation", method, f"serve a checkpoint for {sorted(parameters)}")
    if layer.num_fused_shared_experts:
        raise UnsupportedError(
            "fused shared experts", layer.num_fused_shared_experts, "start with --disable-shared-experts-fusion"
        )
    if layer.with_bias:
        raise UnsupportedError("expert biases", True, "serve a model whose experts have weights only")
    extra = sorted(set(dict(layer.named_parameters())) ^ parameters[method])
    if extra:
        raise UnsupportedError("expert parameters", extra, f"serve a model whose experts are {parameters[method]}")
    if layer.moe_runner_config.apply_router_weight_on_input:
        raise UnsupportedError("apply_router_weight_on_input", True, "serve a model that weighs outputs")


def check_scheduler(scheduler: Any) -> None:
    """Refuse models whose forward cannot be run twice: state that is not overwritten in place.

    Raises:
        UnsupportedError: the model keeps recurrent state.
    """
    if scheduler.is_hybrid_ssm:
        raise UnsupportedError(
            "recurrent state",
            "Mamba-like layers",
            "serve a model with attention only: a step must be able to run again",
        )


def tie_head(model: Any) -> None:
    """Fill the output matrix of a model whose embeddings are tied and whose family ignores that.

    qwen3_moe.py:1017 and glm4_moe.py:999 make the head and never load it: every logit would be the same.
    """
    head, embedding = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if model.config.tie_word_embeddings and head is not None and embedding is not None and head is not embedding:
        head.weight.data.copy_(embedding.weight.data)
