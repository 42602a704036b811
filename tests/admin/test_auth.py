"""Nobody may do anything unless the token file or the certificate says so."""

from __future__ import annotations

import re

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from controlplane.admin import Authentication, Role, TokenFile, make_app
from controlplane.admin.auth import TokenFileError, parse_tokens
from controlplane.telemetry import ControlPlaneMetrics
from tests.admin.instance import OPERATOR, TOKENS, VIEWER, as_bearer, table_of

OPEN = {"/", "/livez", "/readyz", "/leader"}


@pytest.fixture
def table(instance):
    return table_of(instance)


def filled(path):
    """A path with something in its parameters."""
    return re.sub(r"\{\w+\}", "1", path)


@pytest.fixture
async def stranger(instance, tmp_path):
    async with instance.client(tmp_path, token=None) as client:
        yield client


async def test_without_a_token_everything_but_health_is_refused(stranger, table, instance):
    for route in table:
        answer = await stranger.request(route.method, filled(route.path))
        assert (answer.status == 401) is (route.path not in OPEN), route
        if answer.status == 401:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await stranger.get("/v1/unknown")).status == 401
    assert await instance.archive.operations() == []


async def test_a_viewers_token_changes_nothing(stranger, table, instance):
    mutations = [route for route in table if route.method != "GET"]
    assert len(mutations) >= 15
    for route in mutations:
        answer = await stranger.request(
            route.method, filled(route.path), json={"reason": "x"}, headers=as_bearer(VIEWER)
        )
        assert answer.status == 403, route
        assert (await answer.json())["remedy"]
    assert await instance.archive.operations() == []
    assert (await stranger.get("/v1/cluster", headers=as_bearer(VIEWER))).status == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", f"Basic {OPERATOR}", OPERATOR, f"Bearer {OPERATOR}x", f"Bearer {OPERATOR[:-1]}"]
)
async def test_a_token_that_is_not_exactly_right_is_refused(stranger, header):
    answer = await stranger.get("/v1/cluster", headers={"Authorization": header})
    assert answer.status == 401
    assert OPERATOR not in await answer.text()


async def test_tokens_are_rotated_without_a_restart(instance, tmp_path):
    async with instance.client(tmp_path) as client:
        (tmp_path / "tokens").write_text(TOKENS.replace(OPERATOR, "another-token-0123456789"))
        assert (await client.get("/v1/cluster")).status == 401
        assert (await client.get("/v1/cluster", headers=as_bearer("another-token-0123456789"))).status == 200


async def test_a_damaged_new_token_file_leaves_the_old_tokens_in_force(instance, tmp_path, caplog):
    async with instance.client(tmp_path) as client:
        (tmp_path / "tokens").write_text("operator alice")
        assert (await client.get("/v1/cluster")).status == 200
    assert "line 1" in caplog.text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("operator alice", "line 1: 2 words"),
        ("\nroot alice 0123456789abcdef", "line 2: role 'root' is not known"),
        ("viewer a short", "a's token has 5 characters"),
        ("viewer a 0123456789abcdef\noperator b 0123456789abcdef", "line 2: b's token stands in another line"),
    ],
)
def test_a_bad_token_file_is_refused_by_line(text, complaint):
    with pytest.raises(TokenFileError, match=complaint):
        parse_tokens(text, source="tokens")


def test_a_missing_token_file_stops_the_start(tmp_path):
    with pytest.raises(FileNotFoundError):
        TokenFile(tmp_path / "none")


async def asked(instance, authentication, path="/v1/cluster"):
    registry = CollectorRegistry()
    app = make_app(
        reader=instance,
        archive=instance.archive,
        predictor=instance,
        authentication=authentication,
        metrics=ControlPlaneMetrics(registry),
        registry=registry,
    )
    async with TestClient(TestServer(app)) as client:
        return (await client.get(path)).status


async def test_with_nothing_configured_nobody_is_let_in(instance):
    assert await asked(instance, Authentication()) == 401


async def test_a_demonstration_may_let_everybody_in_when_told_so(instance):
    assert await asked(instance, Authentication(anonymous=Role.VIEWER)) == 200
