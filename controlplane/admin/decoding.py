"""From an HTTP request to typed values; every complaint names the field, the value and the remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from controlplane.admin.errors import BadRequestError, TooLargeError, UnsupportedMediaTypeError
from schemas.vocabulary import MAX_RANKS

if TYPE_CHECKING:
    from schemas.vocabulary import Epoch, Rank

Decoded = TypeVar("Decoded")
MAX_BODY = 64 * 1024
EXACT = 2**53
"""Below this a JSON number that looks whole is."""
_FLAGS = {"1": True, "true": True, "0": False, "false": False}
_KEY = re.compile(r"[!-~]{1,255}")
_ETAG = re.compile(r'"([0-9]{1,18})"|([0-9]{1,18})')
_PATH = re.compile(r"(.*) - at `\$(.*)`$")


async def body(request: web.Request, kind: type[Decoded]) -> Decoded:
    """The JSON body as ``kind``; a missing one reads as ``{}``."""
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLargeError(
            "The body is too large.", field="body", remedy=f"No valid body is larger than {MAX_BODY} bytes."
        ) from error
    if raw and request.content_type != "application/json":
        raise UnsupportedMediaTypeError(
            "Bodies are JSON.",
            field="header.Content-Type",
            value=request.content_type,
            remedy="Send Content-Type: application/json.",
        )
    try:
        said = _whole(msgspec.json.decode(raw or b"{}"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"This is not JSON: {error}.", field="body", remedy="Send a JSON object.") from error
    try:
        return msgspec.convert(said, type=kind)
    except msgspec.ValidationError as error:
        raise _bad_body(str(error), said) from error


def _whole(value: object) -> object:
    """JSON knows no integers: 4.0 is one, as JSON Schema has it."""
    match value:
        case float() if value.is_integer() and abs(value) < EXACT:
            return int(value)
        case list():
            return [_whole(one) for one in value]
        case dict():
            return {name: _whole(one) for name, one in value.items()}
        case _:
            return value


def _bad_body(message: str, said: object) -> BadRequestError:
    """Split what msgspec says, ``Expected `int`, got `str` - at `$.ranks[0]```, into what and where."""
    found = _PATH.match(message)
    what, where = (found[1], f"body{found[2]}") if found else (message, "body")
    return BadRequestError(f"{what}.", field=where, value=_at(said, where), remedy="See /openapi.json for the schema.")


def _at(said: Any, where: str) -> object:
    """The value at a path like ``body.ranks[0]``, None where there is none to show."""
    try:
        for name, index in re.findall(r"\.([A-Za-z_]+)|\[(\d+)\]", where):
            said = said[name] if name else said[int(index)]
    except (LookupError, TypeError):
        return None
    return said


def rank(request: web.Request) -> Rank:
    """The rank in the path."""
    text = request.match_info["rank"]
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", text) or int(text) >= MAX_RANKS:
        raise BadRequestError(
            "This is not a rank.", field="path.rank", value=text, remedy=f"Ranks are 0 … {MAX_RANKS - 1}."
        )
    return int(text)


def epoch(request: web.Request) -> Epoch:
    """The epoch in the path."""
    text = request.match_info["epoch"]
    if not re.fullmatch(r"0|[1-9][0-9]{0,11}", text):
        raise BadRequestError("This is not an epoch.", field="path.epoch", value=text, remedy="Epochs are numbers.")
    return int(text)


def flag(request: web.Request, name: str) -> bool:
    """A query parameter that is on or off; off when absent."""
    text = request.query.get(name, "0")
    if text not in _FLAGS:
        raise BadRequestError("This is neither on nor off.", field=f"query.{name}", value=text, remedy="Use 1 or 0.")
    return _FLAGS[text]


def number(request: web.Request, name: str, *, default: int, low: int, high: int) -> int:
    """A whole query parameter within ``low`` … ``high``."""
    text = request.query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
        raise BadRequestError(
            "This number is out of range.", field=f"query.{name}", value=text, remedy=f"Use {low} … {high}."
        )
    return int(text)


def idempotency_key(request: web.Request) -> str:
    """``Idempotency-Key``, empty when absent."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return ""
    if not _KEY.fullmatch(key):
        raise BadRequestError(
            "This is not a key.",
            field="header.Idempotency-Key",
            value=key,
            remedy="Use 1 to 255 visible ASCII characters, e.g. a UUID.",
        )
    return key


def expected_epoch(request: web.Request) -> Epoch | None:
    """The epoch that ``If-Match`` insists on, None when the caller does not care."""
    tag = request.headers.get("If-Match")
    if tag is None or tag == "*":
        return None
    found = _ETAG.fullmatch(tag)
    if found is None:
        raise BadRequestError(
            "This is not an epoch's tag.",
            field="header.If-Match",
            value=tag,
            remedy='Send the ETag of /v1/cluster: "7".',
        )
    return int(found[1] or found[2])


def last_event(request: web.Request, *, default: int) -> int:
    """The revision to resume after: ``Last-Event-ID``, else ``?after=``, else ``default``."""
    text = request.headers.get("Last-Event-ID")
    if text is None:
        return number(request, "after", default=default, low=0, high=2**53 - 1)
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise BadRequestError(
            "This is not a revision.", field="header.Last-Event-ID", value=text, remedy="Send an id of this stream."
        )
    return int(text)
