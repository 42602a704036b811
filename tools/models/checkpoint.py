"""Write a model the way published MoE checkpoints look: one tensor per expert, ``num_experts`` in the configuration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def save(model: Any, folder: Path, *, shard: str = "4GB") -> None:
    """Save ``model`` (a transformers model, in the dtype it is to be stored in) with readable files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "num_local_experts" in config:  # transformers 5 writes its own name; checkpoints and SGLang say num_experts
        config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)
