"""Write a model the way published MoE checkpoints look: one tensor per expert, ``num_experts`` in the configuration."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def save(model: Any, folder: Path, *, shard: str = "4GB") -> None:
    """Save ``model`` (a transformers model, in the dtype it is to be stored in) with readable files."""
    folder.mkdir(parents=True, exist_ok=True)
    _untie(model)
    model.save_pretrained(folder, max_shard_size=shard)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "num_local_experts" in config:  # transformers 5 writes its own name; checkpoints and SGLang say num_experts
        config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)


def _untie(model: Any) -> None:
    """Give the model an output matrix of its own: SGLang's MoE families leave a tied one empty (qwen3_moe.py:1017)."""
    if model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = deepcopy(model.get_input_embeddings().weight)
