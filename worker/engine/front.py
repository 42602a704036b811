"""What a rank adds to SGLang's HTTP server: a draining rank turns new requests away."""

from __future__ import annotations

import gc
import importlib
import json
from typing import TYPE_CHECKING, Any

from native import _native

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker.engine.settings import EngineSettings

    Scope = dict[str, Any]
    Application = Callable[[Scope, Any, Any], Awaitable[None]]

_GENERATES = frozenset({"/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses"})
_RETRY_AFTER_S = 1


class Front:
    """ASGI middleware over SGLang's application; reads the rank's phase from the control block."""

    def __init__(self, settings: EngineSettings) -> None:
        self._control = _native.ControlBlock.attach(settings.control_path)

    def mount(self) -> None:
        """Put it in front of SGLang's routes."""
        server: Any = importlib.import_module("sglang.srt.entrypoints.http_server")
        server.app.add_middleware(_Gate, front=self)

    @property
    def closed(self) -> bool:
        """Whether new requests are turned away."""
        return self._control.phase >= _native.Phase.DRAINING


class _Gate:
    def __init__(self, app: Application, *, front: Front) -> None:
        self._app = app
        self._front = front
        gc.freeze()  # SGLang's modules stay: a collection that walks them would be a gap in every stream

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in _GENERATES and self._front.closed:
            body = json.dumps({"error": {"type": "draining", "message": "this rank is leaving; ask another"}}).encode()
            headers = [(b"content-type", b"application/json"), (b"retry-after", str(_RETRY_AFTER_S).encode())]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)
