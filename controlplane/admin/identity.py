"""What is known of the request under way: who sends it, and what the audit shall say of it."""

from __future__ import annotations

from aiohttp import web

from controlplane.admin.auth import Identity, Role

_IDENTITY: web.RequestKey[Identity] = web.RequestKey("identity", Identity)
_NOTES: web.RequestKey[dict[str, object]] = web.RequestKey("notes", dict)
NOBODY = Identity("-", Role.NOBODY)


def set_identity(request: web.Request, identity: Identity) -> None:
    """Remember who calls."""
    request[_IDENTITY] = identity


def identity_of(request: web.Request) -> Identity:
    """Who calls; ``NOBODY`` where no role is needed or nobody was recognised."""
    found = request.get(_IDENTITY)
    return found if isinstance(found, Identity) else NOBODY


def note(request: web.Request, **facts: object) -> None:
    """Add facts to the audit line of this request."""
    request[_NOTES] = {**notes(request), **facts}


def notes(request: web.Request) -> dict[str, object]:
    """What was noted so far."""
    return dict(request.get(_NOTES, {}))
