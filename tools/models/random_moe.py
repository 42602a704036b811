"""Random MoE models of any shape, for tests and benchmarks; they speak the shipped model's tokenizer.

A plain random model is useless as a witness: its logits are near-ties, so rounding decides the tokens, and its experts
hardly matter. Here every part is scaled to matter: logits spread over tens, routers have opinions, and the experts'
share of the residual is as large as attention's, so that one wrong slot changes the very next token.

    python -m tools.models.random_moe FOLDER --preset wide --seed 3
    python -m tools.models.random_moe FOLDER --family glm4 --experts 6 --top-k 2 --shared 1
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tools.models import checkpoint
from tools.models.torch_modules import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    torch,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Family = Literal["qwen3", "glm4"]
SHIPPED = Path(__file__).parent / "sprout"
"""The trained model of this repository."""
_LOGIT_SPREAD = 10.0
"""Standard deviation of a logit: the top two are 2–3 apart, five orders above float32 rounding."""


@dataclass(frozen=True)
class Shape:
    """What a random model looks like; the defaults are the shipped model's."""

    family: Family = "qwen3"
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 32
    top_k: int = 4
    intermediate: int = 64
    """Rows of one expert's gate and of its up projection."""
    shared: int = 0
    """Experts that every token takes; GLM4-MoE only."""
    dense: int = 0
    """First layers without experts; GLM4-MoE only."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    vocabulary: int = 2048
    context: int = 4096

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(f"shape: family {self.family!r}; this makes {', '.join(get_args(Family))}")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"shape: top_k {self.top_k} of {self.experts} experts; it must be between 1 and experts")
        if self.family == "qwen3" and (self.shared or self.dense):
            raise ValueError("shape: Qwen3-MoE has neither shared experts nor dense layers; use family glm4")

    @property
    def expert_bytes(self) -> int:
        """One expert of one layer as stored."""
        return 3 * self.hidden * self.intermediate * (4 if self.dtype == "float32" else 2)


PRESETS: Mapping[str, Shape] = {
    "tiny": Shape(layers=2, hidden=64, heads=2, kv_heads=1, experts=8, top_k=2, intermediate=32),
    "odd": Shape(layers=2, experts=13, top_k=1, intermediate=48),  # experts not divisible by ranks, top-1
    "wide": Shape(layers=3, experts=64, top_k=8, intermediate=32),
    "shared": Shape(family="glm4", layers=3, experts=16, top_k=4, shared=1, dense=1),
    "shared-odd": Shape(family="glm4", layers=2, experts=10, top_k=3, shared=2, intermediate=48),
    "large-experts": Shape(layers=2, hidden=1024, heads=8, head_dim=64, experts=8, top_k=2, intermediate=1792),
}
"""``large-experts``: 22 MB each, 352 MB in all."""


def make(folder: Path, shape: Shape, *, seed: int, tokenizer_of: Path = SHIPPED) -> Path:
    """Write the model for ``shape`` and ``seed`` into ``folder``: the same arguments give the same bytes.

    Raises:
        FileNotFoundError: ``tokenizer_of`` has no tokenizer.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _model(shape)
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), *model.named_buffers()):
            _fill(name, weight, generator)
    checkpoint.save(model.to(getattr(torch, shape.dtype)), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_of / name, folder / name)
    return folder


def _model(shape: Shape) -> Qwen3MoeForCausalLM | Glm4MoeForCausalLM:
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": 2 * shape.hidden,
        "moe_intermediate_size": shape.intermediate,
        "num_experts_per_tok": shape.top_k,
        "norm_topk_prob": True,
        "max_position_embeddings": shape.context,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    with torch.device("meta"):
        if shape.family == "qwen3":
            model = Qwen3MoeForCausalLM(
                Qwen3MoeConfig(num_experts=shape.experts, decoder_sparse_step=1, mlp_only_layers=[], **common)
            )
        else:
            model = Glm4MoeForCausalLM(
                Glm4MoeConfig(
                    n_routed_experts=shape.experts,
                    n_shared_experts=shape.shared,
                    first_k_dense_replace=shape.dense,
                    n_group=1,
                    topk_group=1,
                    routed_scaling_factor=1.0,
                    use_qk_norm=True,
                    num_nextn_predict_layers=0,
                    **common,
                )
            )
    model = model.to_empty(device="cpu")
    model.generation_config.eos_token_id = 1
    return model


def _fill(name: str, weight: torch.Tensor, generator: torch.Generator) -> None:
    if not weight.is_floating_point() or "inv_freq" in name:  # rotary tables are computed, not stored
        return
    weight.normal_(generator=generator)
    if "embed_tokens" in name:
        return
    if "correction_bias" in name:
        weight.mul_(0.1)
    elif weight.ndim == 1:
        weight.mul_(0.1).add_(1.0)  # norms: near one, but a forgotten norm shows
    else:
        weight.mul_(_gain(name) / weight.shape[-1] ** 0.5)


def _gain(name: str) -> float:
    if "lm_head" in name:
        return _LOGIT_SPREAD
    if name.endswith("mlp.gate.weight"):
        return 2.0  # routers: scores several apart, so that rounding does not choose the experts
    return 3.0 if "down_proj" in name else 1.0  # makes up for silu(gate) · up being small


def main(argv: list[str]) -> int:
    """Command line: a preset, and any field of ``Shape`` on top of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.models.random_moe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS))
    parser.add_argument("--seed", type=int, default=0)
    defaults = Shape()
    for field in fields(Shape):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(getattr(defaults, field.name)), default=None)
    options = parser.parse_args(argv)
    given = {field.name: getattr(options, field.name) for field in fields(Shape)}
    shape = PRESETS[options.preset] if options.preset else defaults
    shape = replace(shape, **{name: value for name, value in given.items() if value is not None})
    make(options.folder, shape, seed=options.seed)
    print(f"{options.folder}: {shape}; one expert {shape.expert_bytes / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
