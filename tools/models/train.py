"""Train the small Qwen3-MoE that everything here serves: minutes on one core, no download.

Weights are trained in float32 and stored as bfloat16: every float32 compute of the stored values is exact, so that a
reference and a served rank start from the same numbers. The balancing loss is weak on purpose: expert load stays
skewed, as it is in real traffic.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.models import checkpoint, measure, tokenizer
from tools.models import corpus as texts
from tools.models.card import card
from tools.models.muon import Muon
from tools.models.torch_modules import Qwen3MoeConfig, Qwen3MoeForCausalLM, torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer

CONTEXT = 2048
"""Positions the model may be served with, tokens."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    steps: int = 2000
    batch: int = 3
    """Sequences per step."""
    length: int = 512
    """Tokens per sequence."""
    peak: float = 7e-3
    """Highest learning rate, reached after ``warmup`` steps and left along a cosine."""
    warmup: int = 60
    seed: int = 20


def config(vocabulary: int) -> Qwen3MoeConfig:
    """Four layers of 32 experts, four for each token: 4 ranks × 12 slots hold every expert once and a half."""
    return Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        router_aux_loss_coef=0.01,
        output_router_logits=True,
        tie_word_embeddings=True,
        max_position_embeddings=CONTEXT,
        rope_theta=10000.0,
        bos_token_id=None,
        eos_token_id=tokenizer.END_ID,
        pad_token_id=tokenizer.PAD_ID,
        initializer_range=0.02,
    )


def _stream(encoded: Sequence[list[int]], rng: random.Random) -> Iterator[int]:
    while True:
        order = list(range(len(encoded)))
        rng.shuffle(order)
        for index in order:
            yield from encoded[index]


def _learning_rate(schedule: Schedule, step: int) -> float:
    if step < schedule.warmup:
        return schedule.peak * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / (schedule.steps - schedule.warmup)
    return schedule.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class _Optimizer:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and routers."""

    def __init__(self, model: Qwen3MoeForCausalLM) -> None:
        inside = [
            weight
            for name, weight in model.named_parameters()
            if weight.ndim > 1 and "embed" not in name and "mlp.gate." not in name
        ]
        ids = {id(weight) for weight in inside}
        outside = [weight for weight in model.parameters() if id(weight) not in ids]
        self._muon = Muon(inside)
        self._adam = torch.optim.AdamW(outside, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, rate: float) -> None:
        self._muon.rate = rate
        self._adam.param_groups[0]["lr"] = rate
        self._muon.step()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)


def train(model: Qwen3MoeForCausalLM, encoded: Sequence[list[int]], schedule: Schedule) -> float:
    """Run the schedule; returns the mean loss of the last 50 steps, nats per token, balancing loss included."""
    stream = _stream(encoded, random.Random(schedule.seed))
    optimizer = _Optimizer(model)
    recent: list[float] = []
    started = time.monotonic()
    for step in range(schedule.steps):
        rows = [[next(stream) for _ in range(schedule.length)] for _ in range(schedule.batch)]
        batch = torch.tensor(rows)
        out = model(input_ids=batch, labels=batch, use_cache=False)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(_learning_rate(schedule, step))
        recent = [*recent[-49:], float(out.loss.detach())]
        if step % 25 == 0:
            tokens = (step + 1) * schedule.batch * schedule.length
            pace = tokens / (time.monotonic() - started)
            print(f"step {step:5d}  loss {sum(recent) / len(recent):.3f}  {pace:6.0f} tok/s", flush=True)
    return sum(recent) / len(recent)


def make(folder: Path, schedule: Schedule, *, vocabulary: int) -> dict[str, object]:
    """Train and write tokenizer, weights and ``training.json`` into ``folder``; returns what was measured."""
    torch.manual_seed(schedule.seed)
    started = time.monotonic()
    documents = texts.build()
    bpe: Tokenizer = tokenizer.train(documents.train, vocabulary=vocabulary)
    encoded = [encoding.ids for encoding in bpe.encode_batch(list(documents.train))]
    model = Qwen3MoeForCausalLM(config(bpe.get_vocab_size()))
    loss = train(model, encoded, schedule)
    model = model.to(torch.bfloat16)
    model.config.output_router_logits = False
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(model, folder)
    tokenizer.save(bpe, folder, context=CONTEXT)
    held_out = [encoding.ids for encoding in bpe.encode_batch(list(documents.held_out))]
    return {
        "python": platform.python_version(),
        "steps": schedule.steps,
        "tokens": schedule.steps * schedule.batch * schedule.length,
        "corpus_tokens": sum(map(len, encoded)),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "last_training_loss_nats": round(loss, 3),
        **measure.measure(folder, held_out).as_dict(),
    }


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.models.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens, special ones included")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    result = make(options.folder, Schedule(steps=options.steps), vocabulary=options.vocabulary)
    (options.folder / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    shape = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))
    (options.folder / "README.md").write_text(card(options.folder.name, shape, result), encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
