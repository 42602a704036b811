import hashlib
import json

import pytest

from tools.models import random_moe
from tools.models.random_moe import PRESETS, SHIPPED, Shape, make

SMALL = [name for name in PRESETS if PRESETS[name].expert_bytes < 1_000_000]


def _load(folder, family):
    from tools.models.torch_modules import Glm4MoeForCausalLM, Qwen3MoeForCausalLM, torch

    model = {"qwen3": Qwen3MoeForCausalLM, "glm4": Glm4MoeForCausalLM}[family]
    return model.from_pretrained(folder, dtype=torch.float32).eval()


def _digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", SMALL)
def test_has_the_shape_it_was_asked_for(name, tmp_path):
    shape = PRESETS[name]
    make(tmp_path, shape, seed=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == shape.layers
    assert config["num_experts_per_tok"] == shape.top_k
    assert config["num_experts" if shape.family == "qwen3" else "n_routed_experts"] == shape.experts
    assert (tmp_path / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", SMALL)
def test_is_no_near_tie_and_every_expert_matters(name, tmp_path):
    from tools.models.torch_modules import torch

    shape = PRESETS[name]
    model = _load(make(tmp_path, shape, seed=2), shape.family)
    tokens = torch.randint(5, shape.vocabulary, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
        top = logits.topk(2, dim=-1).values
        assert float((top[..., 0] - top[..., 1]).median()) > 0.5
        before = logits.argmax(-1)
        experts = model.model.layers[-1].mlp.experts
        experts.down_proj[0] = experts.down_proj[1]
        after = model(input_ids=tokens).logits.argmax(-1)
    assert int((before != after).sum()) >= 2


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    made = [make(tmp_path / str(index), PRESETS["tiny"], seed=seed) for index, seed in enumerate((7, 7, 8))]
    first, second, third = map(_digest, made)
    assert first == second != third


def test_large_experts_are_of_realistic_size():
    assert PRESETS["large-experts"].expert_bytes >= 20_000_000


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"top_k": 9, "experts": 8}, "top_k"), ({"family": "other"}, "family"), ({"shared": 1}, "shared")],
)
def test_an_impossible_shape_is_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        Shape(**wrong)


def test_the_command_line_overrides_a_preset(tmp_path, capsys):
    assert random_moe.main([str(tmp_path), "--preset", "tiny", "--experts", "6", "--dtype", "bfloat16"]) == 0
    assert "experts=6" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
