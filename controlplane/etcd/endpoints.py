"""The members of the cluster: one channel each, one of them in use, and the rotation between them.

One channel over all addresses would stay on a hung member for ever (gRPC's ``pick_first`` leaves only closed
connections), so every member has its own and we choose.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from controlplane.etcd.errors import UnavailableError, WrongClusterError
from controlplane.etcd.rpc import AioRpcError, rpc

if TYPE_CHECKING:
    from schemas.config import EtcdConfig

_SCHEME_TLS = "https://"
_UNLIMITED = -1


class Endpoint:
    """One member: its channel, its stubs, and until when it is avoided."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.kv = rpc.KVStub(channel)
        self.lease = rpc.LeaseStub(channel)
        self.watch = rpc.WatchStub(channel)
        self.auth = rpc.AuthStub(channel)
        self.maintenance = rpc.MaintenanceStub(channel)
        self.avoid_until = 0.0

    async def connected(self, within_s: float, *, patient: bool) -> bool:
        """Whether the connection stands, waiting at most ``within_s``; the impatient do not wait out a refusal.

        gRPC says READY only after the server's first HTTP/2 frame: a hung process behind an open socket is not READY.
        """
        deadline = asyncio.get_running_loop().time() + within_s
        while (state := self.channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not patient:
                return False
            try:
                async with asyncio.timeout_at(deadline):
                    await self.channel.wait_for_state_change(state)
            except TimeoutError:
                return False
        return True

    async def explain(self, within_s: float) -> str:
        """Why there is no connection (refused, certificate…): only a request's error says it."""
        try:
            await self.maintenance.Status(rpc.StatusRequest(), timeout=within_s)
        except AioRpcError as error:
            return error.details() or error.code().name
        return "it answers now"


class Endpoints:
    """Which member is in use, and what is known about the cluster from every header seen.

    Invariant: a read that is older than what was known when it was sent (a lower raft term or revision) never reaches
    a caller: its member is left.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        self._members = [Endpoint(url, _channel(url, config)) for url in config.endpoints]
        self._current = random.randrange(len(self._members))  # spreads the clients over the members
        self._cluster = 0
        self.mark = (0, 0)
        """Highest (raft term, revision) seen in any header."""
        self.rotations = 0
        """How often a member was left."""
        self.last_fault = ""

    @property
    def current(self) -> Endpoint:
        """The member in use."""
        return self._members[self._current]

    def leave(self, endpoint: Endpoint, why: str) -> None:
        """Stop using ``endpoint`` for a while; a no-op on the choice if another caller left it already."""
        now = asyncio.get_running_loop().time()
        endpoint.avoid_until = now + self.config.avoid_s
        self.last_fault = f"{endpoint.address}: {why}"
        if endpoint is not self.current:
            return
        self.rotations += 1
        others = [(self._current + step) % len(self._members) for step in range(1, len(self._members) + 1)]
        self._current = min(others, key=lambda index: max(0.0, self._members[index].avoid_until - now))

    async def ready(self, deadline: float) -> Endpoint:
        """A connected member, rotating past those that do not connect.

        Raises:
            UnavailableError: none connected before ``deadline`` (loop time).
        """
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            endpoint = self.current
            patient = all(member.avoid_until > deadline - left for member in self._members)
            if await endpoint.connected(min(left, self.config.connect_timeout_s), patient=patient):
                return endpoint
            self.leave(endpoint, "cannot connect")
        why = await self.current.explain(self.config.connect_timeout_s)
        raise UnavailableError(f"no etcd member is reachable; {self.current.address}: {why}")

    def accept(self, header: Any, mark: tuple[int, int]) -> bool:
        """Note a reply's header; False if its member is behind ``mark``, what was known when the request left.

        Raises:
            WrongClusterError: it belongs to another cluster than the replies before.
        """
        if self._cluster and header.cluster_id != self._cluster:
            raise WrongClusterError(
                f"a member of etcd.endpoints {self.config.endpoints} belongs to cluster {header.cluster_id:x}, the "
                f"others to {self._cluster:x}: correct the list; after a restore from backup restart this process"
            )
        self._cluster = header.cluster_id
        self.mark = (max(self.mark[0], header.raft_term), max(self.mark[1], header.revision))
        return bool(header.raft_term >= mark[0] and header.revision >= mark[1])

    async def close(self) -> None:
        """Close every channel."""
        await asyncio.gather(*(member.channel.close(None) for member in self._members))


def _channel(url: str, config: EtcdConfig) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # two clients of one process must not share a broken connection
        ("grpc.max_receive_message_length", _UNLIMITED),
        ("grpc.keepalive_time_ms", round(config.ping_interval_s * 1000)),
        # grpc.keepalive_timeout_ms does nothing for a hung peer (65 s measured); this one does.
        ("grpc.http2.ping_timeout_ms", round(config.ping_timeout_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.bdp_probe", 0),  # a ping for nearly every message, to size windows for streams that ours are not
        ("grpc.initial_reconnect_backoff_ms", round(config.connect_timeout_s * 200)),
        ("grpc.min_reconnect_backoff_ms", round(config.connect_timeout_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(config.connect_timeout_s * 2000)),
    ]
    target = url.partition("://")[2] or url
    if not url.startswith(_SCHEME_TLS):
        return grpc.aio.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(config.ca_file),
        private_key=_read(config.key_file),
        certificate_chain=_read(config.certificate_file),
    )
    return grpc.aio.secure_channel(target, credentials, options)


def _read(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None
