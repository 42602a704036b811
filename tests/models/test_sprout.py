import hashlib
import json

import pytest

from tools.models import corpus, measure
from tools.models.random_moe import SHIPPED

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def training():
    return json.loads((SHIPPED / "training.json").read_text())


@pytest.fixture(scope="module")
def bpe():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def measured(bpe):
    held_out = [encoding.ids for encoding in bpe.encode_batch(list(corpus.build().held_out))]
    return measure.measure(SHIPPED, held_out, sequences=32)


def test_fits_in_the_repository():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 16 * MIB


def test_every_expert_is_in_the_file_under_the_published_names():
    from safetensors import safe_open

    config = json.loads((SHIPPED / "config.json").read_text())
    with safe_open(SHIPPED / "model.safetensors", "pt") as weights:
        for layer in range(config["num_hidden_layers"]):
            for expert in range(config["num_experts"]):
                stem = f"model.layers.{layer}.mlp.experts.{expert}"
                up = [config["moe_intermediate_size"], config["hidden_size"]]
                assert weights.get_slice(f"{stem}.gate_proj.weight").get_shape() == up
                assert weights.get_slice(f"{stem}.up_proj.weight").get_shape() == up
                assert weights.get_slice(f"{stem}.down_proj.weight").get_shape() == up[::-1]


def test_has_an_output_matrix_of_its_own():
    from safetensors import safe_open

    assert json.loads((SHIPPED / "config.json").read_text())["tie_word_embeddings"] is False
    with safe_open(SHIPPED / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" in weights.keys()  # noqa: SIM118  # the file is no mapping


def test_four_ranks_of_twelve_slots_have_room_for_second_copies():
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["num_experts"] < 4 * 12


def test_knows_unseen_text_far_better_than_chance(measured):
    assert measured.held_out_perplexity < measured.uniform_perplexity / 20


def test_expert_load_is_skewed_and_as_documented(measured, training):
    documented = training["expert_load_max_over_mean"]
    assert min(documented) > 1.2
    for seen, written in zip(measured.expert_load_max_over_mean, documented, strict=True):
        assert seen == pytest.approx(written, rel=0.25)


def test_readme_quotes_the_measured_figures(training):
    readme = (SHIPPED / "README.md").read_text()
    assert str(training["held_out_perplexity"]) in readme
    assert " / ".join(str(load) for load in training["expert_load_max_over_mean"]) in readme


def test_tokenizer_gives_any_text_back(bpe):
    for text in ("", "heapq.heappush(heap, item)\n\n\tx", "naïve Ω ≠ 𝔘 🜚", "\x00\x7f\u2028", " a  b   "):
        assert bpe.decode(bpe.encode(text).ids, skip_special_tokens=False) == text


def test_chat_template_ends_where_the_assistant_speaks():
    from tools.models.torch_modules import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    ids = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is heapq?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert tokenizer.decode(ids).endswith("What is heapq?<|end|>\n<|assistant|>\n")
    assert tokenizer.eos_token_id == 1


def test_corpus_is_a_function_of_the_interpreter():
    digests = [hashlib.sha256("\0".join(corpus.build().train).encode()).hexdigest() for _ in range(2)]
    assert digests[0] == digests[1]


def test_held_out_modules_are_not_trained_on():
    documents = corpus.build()
    assert not set(documents.held_out) & set(documents.train)
    assert 0.02 < len(documents.held_out) / len(documents.train) < 0.12


def test_says_words(bpe):
    from tools.models.torch_modules import Qwen3MoeForCausalLM, torch

    model = Qwen3MoeForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    prompt = torch.tensor([bpe.encode("<|user|>\nWhat is os.path?<|end|>\n<|assistant|>\n").ids])
    with torch.no_grad():
        out = model.generate(prompt, max_new_tokens=48, do_sample=False)
    said = bpe.decode(out[0, prompt.shape[1] :].tolist())
    known = set(" ".join(corpus.build().train).lower().split())
    words = said.lower().split()
    assert len(words) >= 5
    assert sum(word in known for word in words) >= 0.6 * len(words), said
