"""The admin API over HTTP: any replica for reads, the leader for changes, found by following 307."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import msgspec
from yarl import URL

from controlplane.cli.exits import DeniedError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from controlplane.cli.settings import Settings

REDIRECTS = 4
ROUNDS = 4
PAUSE_S = 0.5
RETRIED = frozenset({502, 503, 504})


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: dict[str, Any]


class Api:
    """One command's connection; use as ``async with``."""

    def __init__(self, settings: Settings) -> None:
        self._endpoints = [URL(endpoint.rstrip("/")) for endpoint in settings.endpoints]
        self._headers = {"Authorization": f"Bearer {settings.bearer}"} if settings.bearer else {}
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
        self._tls = settings.tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def endpoints(self) -> list[URL]:
        """Every replica that was configured."""
        return list(self._endpoints)

    async def get(self, path: str, **query: str | int) -> Any:
        """A page as JSON.

        Raises:
            RefusedError, DeniedError: the API's refusal.
            UnreachableError: no endpoint answered.
        """
        return await self._anywhere("GET", path, query=query)

    async def get_at(self, endpoint: URL, path: str) -> tuple[int, Any]:
        """Status and page of one replica, for ``doctor``.

        Raises:
            UnreachableError: it did not answer.
        """
        try:
            async with self._open.get(_joined(endpoint, path)) as answer:
                return answer.status, await _document(answer)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{endpoint}: {error or type(error).__name__}") from error

    async def change(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, dry_run: bool = False, epoch: int = 0
    ) -> Any:
        """Perform or predict a change at the leader; sent again with one key until somebody answers.

        Args:
            method: POST or DELETE.
            path: e.g. ``/v1/ranks/3:drain``.
            body: what is said.
            dry_run: predict only.
            epoch: refuse unless this epoch is still committed; 0 for whichever.

        Raises:
            RefusedError, DeniedError, UnreachableError: as ``get``.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        if epoch:
            headers["If-Match"] = f'"{epoch}"'
        query = {"dry_run": "1"} if dry_run else {}
        return await self._anywhere(method, path, query=query, body=body, headers=headers)

    @asynccontextmanager
    async def events(self, *, after: int) -> AsyncGenerator[AsyncGenerator[Event, None], None]:
        """What changes after a revision, from whichever replica answers.

        Raises:
            RefusedError, DeniedError, UnreachableError: as ``get``.
        """
        unlimited = aiohttp.ClientTimeout(sock_connect=self._timeout.total)
        problems: list[str] = []
        for endpoint in self._endpoints:
            try:
                answer = await self._open.get(
                    _joined(endpoint, "/v1/events"), params={"after": after}, timeout=unlimited
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problems.append(f"{endpoint}: {error}")
                continue
            async with answer:
                if answer.status != 200:
                    _refuse(answer.status, await _document(answer))
                yield _parsed(answer.content)
                return
        raise UnreachableError("no endpoint answered:\n  " + "\n  ".join(problems))

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the client as `async with Api(settings) as api`")
        return self._session

    async def _anywhere(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int],
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        problems: list[str] = []
        for attempt in range(ROUNDS):
            if attempt:
                await asyncio.sleep(PAUSE_S)  # an election takes a second or less
            problems = []
            for endpoint in self._endpoints:
                url = _joined(endpoint, path).update_query(query)
                try:
                    status, document = await self._follow(method, url, body=body, headers=headers)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    problems.append(f"{endpoint}: {error or type(error).__name__}")
                    continue
                if status < 300:
                    return document
                if status not in RETRIED:
                    _refuse(status, document)
                problems.append(f"{endpoint}: {document.get('detail', status)}")
        raise UnreachableError("no endpoint could answer:\n  " + "\n  ".join(problems))

    async def _follow(
        self, method: str, url: URL, *, body: Mapping[str, object] | None, headers: Mapping[str, str] | None
    ) -> tuple[int, Any]:
        """One request, followed to the leader by hand: an HTTP client drops the token when the host changes."""
        for _ in range(REDIRECTS):
            async with self._open.request(method, url, json=body, headers=headers, allow_redirects=False) as answer:
                if answer.status != 307:
                    return answer.status, await _document(answer)
                url = url.join(URL(answer.headers["Location"], encoded=True))
        raise aiohttp.ClientError(f"more than {REDIRECTS} redirects: the replicas disagree who leads")


def _joined(endpoint: URL, path: str) -> URL:
    return URL(f"{endpoint}{path}", encoded=True)


async def _document(answer: aiohttp.ClientResponse) -> Any:
    """The JSON of an answer; what is none (a proxy's error page) as a problem."""
    raw = await answer.read()
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return {"detail": f"{answer.url} answered {answer.status} with no JSON: is this an EEP admin API?"}


def _refuse(status: int, document: Any) -> None:
    problem = document if isinstance(document, dict) else {"detail": str(document)}
    raise (DeniedError if status in (401, 403) else RefusedError)(problem)


async def _parsed(stream: aiohttp.StreamReader) -> AsyncGenerator[Event, None]:
    """Events of a ``text/event-stream``."""
    name = data = ""
    async for raw in stream:
        line = raw.decode().rstrip("\r\n")
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif not line:
            if name:
                yield Event(name, msgspec.json.decode(data) if data else {})
            name = data = ""
