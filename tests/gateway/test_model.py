import json
import shutil

import pytest

from controlplane.gateway.errors import BadRequestError, UnsupportedError
from controlplane.gateway.model import ModelError, ServedModel
from tools.models.random_moe import SHIPPED


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(SHIPPED / name, tmp_path / name)
    return tmp_path


def _change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tokens_and_chat_are_those_of_transformers():
    from tools.models.torch_modules import AutoTokenizer

    ours, theirs = ServedModel.load(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    text = "The with statement\n  is used to …"
    assert list(ours.encode(text)) == theirs(text)["input_ids"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(ours.render(messages)) == rendered


def test_every_end_of_every_file_counts(folder):
    _change(folder / "config.json", eos_token_id=[1, 7])
    _change(folder / "generation_config.json", eos_token_id=9)
    _change(folder / "tokenizer_config.json", eos_token={"content": "<|user|>"})
    model = ServedModel.load(folder)
    assert model.eos == (1, 3, 7, 9)


def test_the_context_can_be_lowered_but_not_raised(folder):
    assert ServedModel.load(folder, context_limit=512).context == 512
    assert ServedModel.load(folder, context_limit=10**6).context == 2048
    assert ServedModel.load(folder, name="served").name == "served"


def test_a_template_that_refuses_is_the_clients_error(folder):
    _change(folder / "tokenizer_config.json", chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadRequestError, match="roles must alternate"):
        ServedModel.load(folder).render([{"role": "user", "content": "x"}])


def test_a_template_cannot_reach_into_the_process(folder):
    _change(folder / "tokenizer_config.json", chat_template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(BadRequestError):
        ServedModel.load(folder).render([{"role": "user", "content": "x"}])


def test_a_template_of_its_own_file_is_found_and_none_is_said(folder):
    _change(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(UnsupportedError, match="no chat template"):
        ServedModel.load(folder).render([{"role": "user", "content": "x"}])
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    model = ServedModel.load(folder)
    assert model.render([{"role": "user", "content": "abc"}]) == model.encode("abc")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_something_is_named_with_the_remedy(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=r"needs config\.json and tokenizer\.json"):
        ServedModel.load(folder)
