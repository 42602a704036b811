"""Every refusal of the API, as ``application/problem+json`` (RFC 9457): what is wrong, with which value, what to do."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTENT_TYPE = "application/problem+json"


class ProblemError(Exception):
    """Root of all refusals; shown to the caller as it stands.

    Attributes:
        detail: what is wrong, in a sentence.
        field: the part of the request at fault, e.g. ``body.reason`` or ``header.If-Match``; empty for none.
        value: what stood there.
        remedy: what to do about it.
        facts: further members of the problem document, e.g. ``headroom``.
    """

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, detail: str, *, field: str = "", value: object = None, remedy: str = "", **facts: object
    ) -> None:
        super().__init__(detail)
        self.detail, self.field, self.value, self.remedy, self.facts = detail, field, value, remedy, facts

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.detail}" + (f" Remedy: {self.remedy}" if self.remedy else "")

    def document(self) -> dict[str, object]:
        """The problem document; empty members are left out."""
        members = {
            "title": self.status.phrase,
            "status": int(self.status),
            "detail": self.detail,
            "field": self.field or None,
            "value": self.value,
            "remedy": self.remedy or None,
            **self.facts,
        }
        return {"type": "about:blank"} | {name: value for name, value in members.items() if value is not None}

    def response(self) -> web.Response:
        """The HTTP answer."""
        return web.Response(
            status=self.status,
            body=msgspec.json.encode(self.document()),
            headers={**self.headers, "Content-Type": CONTENT_TYPE},
        )


class BadRequestError(ProblemError):
    """The request itself is wrong; sending it again will not help."""

    status = HTTPStatus.BAD_REQUEST


class UnauthenticatedError(ProblemError):
    """No token or certificate, or an unknown one. Send ``Authorization: Bearer <token>``."""

    status = HTTPStatus.UNAUTHORIZED
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="eep"'}


class ForbiddenError(ProblemError):
    """The caller is known, but the role does not suffice. Use an operator's token."""

    status = HTTPStatus.FORBIDDEN


class NotFoundError(ProblemError):
    """There is no such rank, operation, epoch or recovery."""

    status = HTTPStatus.NOT_FOUND


class ConflictError(ProblemError):
    """The request is well formed but the instance's state forbids it; ``facts`` say why."""

    status = HTTPStatus.CONFLICT


class PreconditionFailedError(ProblemError):
    """``If-Match`` names an epoch that is no longer the committed one. Read ``/v1/cluster`` again and decide anew."""

    status = HTTPStatus.PRECONDITION_FAILED


class TooLargeError(ProblemError):
    """The body is larger than any valid one."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaTypeError(ProblemError):
    """Bodies are JSON. Send ``Content-Type: application/json``."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class RevisionGoneError(ProblemError):
    """The event stream cannot resume so far back. Read the state again and follow from now."""

    status = HTTPStatus.GONE


class UnavailableError(ProblemError):
    """Nothing is wrong with the request; repeat it with the same ``Idempotency-Key`` after a moment."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class EtcdUnavailableError(UnavailableError):
    """etcd has no quorum or does not answer: the instance serves on, but nothing can be changed or looked up."""


class NoLeaderError(UnavailableError):
    """No replica leads at this moment; an election takes a second or less."""
