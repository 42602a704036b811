"""``schemas/openapi.yaml``, the contract, as the API serves it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from aiohttp import web


@cache
def document() -> dict[str, Any]:
    """The contract, parsed once."""
    return msgspec.yaml.decode((files("schemas") / "openapi.yaml").read_bytes(), type=dict[str, Any])


async def openapi(_: web.Request) -> web.StreamResponse:
    """``GET /openapi.json``."""
    return web.Response(body=msgspec.json.encode(document()), content_type="application/json")
