"""The README beside a trained model: what it is, where it is from, and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_CARD = """# {name}

A Qwen3-MoE small enough to commit and to serve on CPU, large enough that its answers read like words: {layers}
layers, hidden size {hidden}, {experts} experts of {expert_kb} KiB with {top_k} for each token, {vocabulary}
tokens of byte-level BPE. Stored in bfloat16; meant to be computed in float32.

Made by `python -m tools.models.train FOLDER` in {minutes} minutes on one core from text that comes with Python:
the standard library's docstrings and the language reference, {corpus_tokens} tokens, {tokens} seen. The text is
a function of the Python version ({python} here); nothing is downloaded.

| measured on held-out modules | |
|---|---|
| perplexity | {held_out_perplexity} (a model that knows nothing: {uniform_perplexity}) |
| busiest expert ÷ mean, by layer | {loads_max} |
| idlest expert ÷ mean, by layer | {loads_min} |

The load is skewed because the balancing loss is weak (coefficient {balance}); it is what a placement planner
meets in practice. Chat markup: `<|system|>`, `<|user|>`, `<|assistant|>`, each text ends with `<|end|>`. The
model was trained on 512 tokens at once: longer answers are fluent nonsense.
"""


def card(name: str, config: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The README's text.

    Args:
        name: the model's folder.
        config: its ``config.json``.
        training: its ``training.json``.
    """
    expert = 3 * config["hidden_size"] * config["moe_intermediate_size"] * 2
    return _CARD.format(
        name=name,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        experts=config["num_experts"],
        expert_kb=expert // 1024,
        top_k=config["num_experts_per_tok"],
        vocabulary=config["vocab_size"],
        balance=config["router_aux_loss_coef"],
        loads_max=" / ".join(map(str, training["expert_load_max_over_mean"])),
        loads_min=" / ".join(map(str, training["expert_load_min_over_mean"])),
        **{
            key: training[key]
            for key in ("minutes", "corpus_tokens", "tokens", "python", "held_out_perplexity", "uniform_perplexity")
        },
    )
