"""transformers' MoE classes, importable with the CPU build of torch beside PyPI's CUDA-linked torchvision.

transformers imports torchvision for models that see; torchvision 0.28 declares fake kernels for operators that only its
CUDA library defines, and dies (torchvision/_meta_registrations.py:163). Declaring the two schemas first is enough.
"""

from __future__ import annotations

import contextlib

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        with contextlib.suppress(RuntimeError):  # declared already: by a working torchvision, or by SGLang's CPU shims
            library.define(schema)
    return library


_DECLARED = _declare()  # the schemas live as long as this object

from transformers import (  # noqa: E402  # only after the schemas exist
    AutoModelForCausalLM,
    AutoTokenizer,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "Glm4MoeConfig",
    "Glm4MoeForCausalLM",
    "Qwen3MoeConfig",
    "Qwen3MoeForCausalLM",
    "torch",
]
