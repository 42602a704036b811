"""What stands around every handler: refusals as problem documents, who may call, the audit, and the request counter."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from aiohttp import web

from controlplane.admin.auth import Role
from controlplane.admin.errors import CONTENT_TYPE, ForbiddenError, ProblemError
from controlplane.admin.identity import identity_of, note, notes, set_identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp.typedefs import Middleware

    from controlplane.admin.auth import Authentication
    from controlplane.telemetry import ControlPlaneMetrics

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LOG = logging.getLogger("eep.admin")
AUDIT = logging.getLogger("eep.audit")
READS = frozenset({"GET", "HEAD"})


def _template(request: web.Request) -> str:
    """The route's template, so that a metric's label has few values."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def observed(metrics: ControlPlaneMetrics) -> Middleware:
    """Count every request, and write one audit line for each that could have changed something."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        status = 500
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as redirect:
            status = redirect.status
            raise
        else:
            return response
        finally:
            metrics.admin_requests.labels(route=_template(request), method=request.method, status=str(status)).inc()
            if request.method not in READS:
                _audit(request, status=status, seconds=time.monotonic() - started)

    return observe


def _audit(request: web.Request, *, status: int, seconds: float) -> None:
    identity = identity_of(request)
    AUDIT.info(
        "%s %s by %s: %d",
        request.method,
        request.path_qs,
        identity.name,
        status,
        extra={
            "who": identity.name,
            "role": identity.role.name.lower(),
            "peer": request.remote,
            "status": status,
            "seconds": round(seconds, 4),
            **notes(request),
        },
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal and every fault leaves as a problem document; redirects pass."""
    try:
        return await handler(request)
    except ProblemError as problem:
        note(request, refusal=problem.detail)
        return problem.response()
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        return _from_aiohttp(request, error)
    except (ConnectionError, TimeoutError):
        raise  # the caller is gone: there is nobody to answer
    except Exception:
        LOG.exception("%s %s failed", request.method, request.path)
        fault = ProblemError(
            "This is a fault of the control plane.", remedy="Its log says more. Repeating is safe with a key."
        )
        return fault.response()


def _from_aiohttp(request: web.Request, error: web.HTTPException) -> web.Response:
    """404 and 405 of the router, and what aiohttp refuses by itself."""
    kept = {name: value for name, value in error.headers.items() if name == "Allow"}
    document = {
        "type": "about:blank",
        "title": error.reason,
        "status": error.status,
        "detail": f"{request.method} {request.path} is not offered here.",
        "remedy": "See /openapi.json for what is.",
    }
    return web.json_response(document, status=error.status, headers=kept, content_type=CONTENT_TYPE)


def authorized(authentication: Authentication, roles: Mapping[Handler, Role]) -> Middleware:
    """Let pass only who has the role that the route asks for; a path that is no route asks for a viewer."""

    @web.middleware
    async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
        needed = roles.get(request.match_info.handler, Role.VIEWER)
        if needed is Role.NOBODY:
            return await handler(request)
        identity = authentication.identify(request)
        set_identity(request, identity)
        if identity.role < needed:
            raise ForbiddenError(
                f"{identity.name} is a {identity.role.name.lower()}; this needs an {needed.name.lower()}.",
                field="header.Authorization",
                remedy="Use an operator's token.",
            )
        return await handler(request)

    return authorize
