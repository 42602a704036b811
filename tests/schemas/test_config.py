from __future__ import annotations

import tomllib

import msgspec
import pytest

from schemas.config import Config, ConfigError, PolicyConfig, check_files, json_schema, load_config, parse_config
from schemas.policy import Spec
from tools.setup import settings


def test_the_commented_default_file_is_the_defaults():
    assert settings.DEFAULT_FILE.read_text() == settings.render(), "run: tools/config --write"
    assert load_config(settings.DEFAULT_FILE) == Config() == parse_config("", source="empty")


def test_every_setting_says_what_it_is():
    for section in msgspec.structs.fields(Config):
        fields = {field.name for field in msgspec.structs.fields(section.type)}
        explained = set(settings._field_docs(Spec) | settings._field_docs(section.type))
        assert fields <= explained, section.name


def test_the_policy_section_is_the_spec():
    spec = Spec()
    for field in msgspec.structs.fields(PolicyConfig):
        assert getattr(spec, field.name) == field.default, field.name


def test_a_file_changes_what_it_names_and_nothing_else():
    config = parse_config('[etcd]\nendpoints = ["https://a:1", "https://b:2"]\ndeadline_s = 7\n', source="t")
    assert config.etcd.endpoints == ("https://a:1", "https://b:2")
    assert config.etcd.deadline_s == 7.0
    assert config.worker == Config().worker


@pytest.mark.parametrize(
    ("text", "key", "value", "remedy"),
    [
        ("[etcd]\ndeadline_s = -3", "etcd.deadline_s", -3, "> 0"),
        ('[etcd]\ndeadline_s = "3"', "etcd.deadline_s", "3", "expected `float`"),
        ("[etcd]\nping_interval_s = 1", "etcd.ping_interval_s", 1, ">= 5"),
        ("[etcd]\nendpoints = []", "etcd.endpoints", [], "length >= 1"),
        ('[etcd]\nendpoints = ["http://a:1", 5]', "etcd.endpoints[1]", 5, "expected `str`"),
        ("[etcd]\ndeadlin_s = 3", "etcd.deadlin_s", 3, "did you mean etcd.deadline_s?"),
        ("[etc]\na = 3", "etc", {"a": 3}, "did you mean etcd?"),
        ("[zzz]\na = 3", "zzz", {"a": 3}, "known are instance"),
        ('[policy]\nsurvivability = "row"', "policy.survivability", "row", "invalid enum value 'row'"),
        ('[instance]\nname = "A b"', "instance.name", "A b", "matching regex"),
        ("[controlplane]\nport = 70000", "controlplane.port", 70000, "<= 65535"),
        ('[etcd]\nuser = "u"', "etcd", {"user": "u"}, "user and password_file belong together"),
        ("[worker]\nlease_ttl_s = 40", "worker", {"lease_ttl_s": 40}, "raise progress_deadline_s"),
        ("etcd = 3", "etcd", 3, "expected `object`"),
        ("a = ", "file", "f.toml", "is not TOML"),
    ],
)
def test_a_bad_value_is_an_error_that_names_key_value_and_remedy(text, key, value, remedy):
    with pytest.raises(ConfigError) as error:
        parse_config(text, source="f.toml")
    assert error.value.key == key
    assert error.value.value == value
    assert remedy in error.value.remedy
    assert str(error.value).startswith(f"f.toml: {key} = ")


def test_certificates_demand_https_everywhere():
    text = '[etcd]\nca_file = "ca"\nendpoints = ["https://a:1", "http://b:2"]'
    with pytest.raises(ConfigError, match="http://b:2 is not https"):
        parse_config(text, source="f.toml")


def test_files_are_read_by_the_check(tmp_path, capsys):
    path = tmp_path / "eep.toml"
    path.write_text(f'[controlplane]\ntokens_file = "{tmp_path}/tokens"\n')
    assert settings.main([str(path)]) == 78
    assert "controlplane.tokens_file" in capsys.readouterr().err
    (tmp_path / "tokens").write_text("viewer a b\n")
    assert settings.main([str(path)]) == 0
    check_files(load_config(path), source=str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


def test_the_schema_accepts_the_default_file():
    schema = json_schema()
    sections = {field.name for field in msgspec.structs.fields(Config)}
    assert set(schema["$defs"]["Config"]["properties"]) == sections
    assert set(tomllib.loads(settings.render())) == sections
