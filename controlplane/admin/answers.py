"""JSON answers, all in one way: no cache may keep what is true only now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping


def answer(document: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """``document`` as JSON."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(document),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})},
    )
