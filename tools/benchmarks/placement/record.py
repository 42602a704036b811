"""Records how the shipped model routes: ``python -m tools.benchmarks.placement.record`` writes ``routing.json`` here.

The model reads the held-out part of its corpus (modules it was not trained on), teacher-forced, in windows of 512
tokens. The scores of its routers say which experts each token chose. The counts are integers of a fixed computation:
the same Python version and checkpoint give the same file.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

from tools.models.corpus import build
from tools.models.torch_modules import Qwen3MoeForCausalLM, torch

MODEL = Path(__file__).resolve().parents[2] / "models" / "sprout"
TARGET = Path(__file__).with_name("routing.json")
WINDOW = 512
WINDOWS = 116
"""58 layers of 256 experts can be put together from 116 windows × 4 layers of 32 experts."""


def tokens() -> torch.Tensor:
    """[WINDOWS, WINDOW] token ids of held-out text, documents laid end to end."""
    from tokenizers import Tokenizer  # noqa: PLC0415 (needed for recording only)

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    flat: list[int] = []
    for document in build().held_out:
        flat.extend(tokenizer.encode(document).ids)
        if len(flat) >= WINDOWS * WINDOW:
            break
    else:
        raise SystemExit(f"held-out text has {len(flat)} tokens, {WINDOWS * WINDOW} are needed")
    return torch.tensor(flat[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW)


def record() -> list[list[list[int]]]:
    """[windows][layers][experts] tokens that each expert was chosen for."""
    model = Qwen3MoeForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    experts, chosen = model.config.num_experts, model.config.num_experts_per_tok
    windows = []
    for window in tokens():
        with torch.no_grad():
            out = model(input_ids=window[None], output_router_logits=True, use_cache=False)
        picks = [scores.reshape(-1, experts).topk(chosen, dim=-1).indices for scores in out.router_logits]
        windows.append([torch.bincount(each.flatten(), minlength=experts).tolist() for each in picks])
    return windows


def main() -> int:
    """Write the file."""
    torch.set_num_threads(2)
    windows = record()
    data = {
        "model": "tools/models/sprout",
        "checkpoint_sha256": sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
        "text": "held-out modules of the Python standard library (tools/models/corpus.py)",
        "python": sys.version.split()[0],
        "tokens_per_window": WINDOW,
        "windows": windows,
    }
    TARGET.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{TARGET}: {len(windows)} windows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
