"""Flags before environment before file before default; a bad value names itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controlplane.cli.exits import UsageError
from controlplane.cli.settings import DEFAULT_ENDPOINT, resolve
from controlplane.cli.tables import ago, duration, numbers, size


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "eepctl.toml"
    path.write_text('endpoints = ["http://file:1"]\ntimeout_s = 3.0\n')
    return path


def test_the_nearest_place_wins(file):
    environment = {"EEP_CONFIG": str(file), "EEP_ENDPOINTS": "http://env:1, http://env:2"}
    assert resolve({}, {"HOME": "/none", "EEP_CONFIG": str(file)}).endpoints == ("http://file:1",)
    assert resolve({}, environment).endpoints == ("http://env:1", "http://env:2")
    assert resolve({"endpoints": ["http://flag:1"]}, environment).endpoints == ("http://flag:1",)
    assert resolve({}, environment).timeout_s == 3.0


def test_without_anything_the_local_replica_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve({}, {}).endpoints == (DEFAULT_ENDPOINT,)


def test_the_token_is_read_from_its_file_with_or_without_role_and_name(tmp_path):
    path = tmp_path / "token"
    for text in ("0123456789abcdef\n", "operator alice 0123456789abcdef\n"):
        path.write_text(text)
        assert resolve({"token_file": str(path)}, {}).bearer == "0123456789abcdef"


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        ({"config": "/none.toml"}, {}, "/none.toml"),
        ({}, {"EEP_TIMEOUT_S": "soon"}, "timeout_s"),
    ],
)
def test_what_is_wrong_is_named(flags, environment, named):
    with pytest.raises(UsageError, match=named):
        resolve(flags, environment)


def test_an_unknown_key_of_the_file_is_named(tmp_path):
    path = tmp_path / "eepctl.toml"
    path.write_text('endpoint = "http://file:1"\n')
    with pytest.raises(UsageError, match="endpoint"):
        resolve({"config": str(path)}, {})


@pytest.mark.parametrize("content", [None, ""])
def test_a_token_file_without_a_token_is_named(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match="token"):
        resolve({"token_file": str(path)}, {}).bearer  # noqa: B018 - reading it is what fails


def test_a_bad_certificate_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"ca\.pem"):
        resolve({"ca_file": str(tmp_path / "ca.pem")}, {}).tls  # noqa: B018 - as above


@pytest.mark.parametrize(("ranks", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 7, 9, 8), "0-2,7-9")])
def test_ranks_are_folded(ranks, text):
    assert numbers(ranks) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0124, "12ms"), (3.21, "3.2s"), (61, "1m"), (7300, "2h"), (200_000, "2d"), (-1, "0ms")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_ages_and_sizes():
    assert ago("2026-01-01T00:00:00.000Z", now=datetime(2026, 1, 1, 0, 5, tzinfo=UTC)) == "5m"
    assert ago(None) == ""
    assert (size(100), size(2**20), size(2**50)) == ("100 B", "1.0 MiB", "1024.0 TiB")
