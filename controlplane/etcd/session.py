"""One unary call: a deadline, an attempt per member, a token that is renewed, and the rule for sending it again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.etcd import rpc as wire
from controlplane.etcd.endpoints import Endpoint, Endpoints
from controlplane.etcd.errors import AuthenticationError, EtcdError, OutcomeUnknownError, UnavailableError
from controlplane.etcd.rpc import AioRpcError, rpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.config import EtcdConfig

Metadata = tuple[tuple[str, str], ...]
_HAS_LEADER = ("hasleader", "true")
"""Makes a member without a leader refuse instead of staying silent (etcd's ``WithRequireLeader``)."""
_FIRST_PAUSE_S = 0.02
"""Before the second attempt; doubles: another member is usually there at once, an election takes a second."""
_LONGEST_PAUSE_S = 0.5


class Session:
    """The endpoints, and the user's token."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self.endpoints = Endpoints(config)
        self._token = ""
        self._authenticating = asyncio.Lock()

    async def call(
        self, method: Callable[[Endpoint], Any], request: Any, *, repeat: bool, wrote: bool, lease: int = 0
    ) -> tuple[Any, OutcomeUnknownError | None]:
        """Send ``request`` until a member answers; ``repeat`` says that sending it twice is harmless.

        Returns:
            The reply, and the error of an earlier attempt that may have been applied (None: there was none).

        Raises:
            UnavailableError: no answer before the deadline and nothing written.
            OutcomeUnknownError: no answer, and ``wrote``: it may have been applied.
            EtcdError: etcd refused it.
        """
        deadline = asyncio.get_running_loop().time() + self.config.deadline_s
        unknown: OutcomeUnknownError | None = None
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return await self._attempt(method, request, deadline, fresh=not wrote), unknown
            except AioRpcError as error:
                fault = wire.translate(error, wrote=wrote, lease=lease)
                if isinstance(fault, OutcomeUnknownError):
                    unknown = unknown or fault
                    if not repeat:
                        raise fault from error
                elif not isinstance(fault, UnavailableError):
                    raise fault from error
            except UnavailableError as error:
                fault = error
            if asyncio.get_running_loop().time() + pause >= deadline:
                raise unknown or fault
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _attempt(self, method: Callable[[Endpoint], Any], request: Any, deadline: float, *, fresh: bool) -> Any:
        member = await self.endpoints.ready(deadline)
        metadata = await self.metadata(member)
        mark = self.endpoints.mark
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            reply = await method(member)(request, timeout=min(left, self.config.request_timeout_s), metadata=metadata)
        except AioRpcError as error:
            self.judge(member, error, metadata)
            raise
        if not self.endpoints.accept(reply.header, mark) and fresh:
            self.endpoints.leave(member, "its data is older than what was seen before")
            raise UnavailableError(
                f"{member.address} is behind the cluster; after a restore from backup restart this process"
            )
        return reply

    def judge(self, member: Endpoint, error: AioRpcError, metadata: Metadata) -> None:
        """Leave a member that failed; drop a token that was refused."""
        if wire.token_refused(error):
            self.forget_token(metadata)
        elif wire.transient(error):
            self.endpoints.leave(member, f"{error.code().name} {error.details()}")

    async def metadata(self, member: Endpoint) -> Metadata:
        """What goes with every request: the demand for a leader, and the user's token.

        Raises:
            AuthenticationError: user or password was refused.
            UnavailableError: the member did not answer.
        """
        if not self.config.user:
            return (_HAS_LEADER,)
        async with self._authenticating:  # one authentication for all who wait: bcrypt costs the server 0.1 s
            if not self._token:
                self._token = await self._authenticate(member)
            return (_HAS_LEADER, ("token", self._token))

    def forget_token(self, metadata: Metadata) -> None:
        """Authenticate again before the next request, unless another call has done so already."""
        if ("token", self._token) in metadata:
            self._token = ""

    async def _authenticate(self, member: Endpoint) -> str:
        password = _password(self.config.password_file)
        request = rpc.AuthenticateRequest(name=self.config.user, password=password)
        try:
            reply = await member.auth.Authenticate(
                request, timeout=self.config.request_timeout_s, metadata=(_HAS_LEADER,)
            )
        except AioRpcError as error:
            self.judge(member, error, ())
            fault: EtcdError = wire.translate(error, wrote=False)
            raise fault from error
        return str(reply.token)


def _password(path: str) -> str:
    """Read again at every authentication: secrets are rotated under a running process."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise AuthenticationError(f"etcd.password_file {path} cannot be read: {error.strerror}") from error
