"""Faults and operator actions as verbs on a running instance; each returns the moment it happened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from msgspec import structs

from controlplane.etcd import leader_of
from schemas.codec import decode, encode
from schemas.policy import Spec
from schemas.records import LeaderRecord
from tools.mainjob.instance import Instance, InstanceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from schemas.vocabulary import Rank


@dataclass(frozen=True)
class Moment:
    """One instant on both clocks: tokens are timed by the monotonic one, records by the wall clock."""

    monotonic_ns: int
    unix_ns: int

    @classmethod
    def now(cls) -> Moment:
        """This instant."""
        return cls(time.monotonic_ns(), time.time_ns())


class Faults:
    """What can be done to an instance."""

    def __init__(self, instance: Instance) -> None:
        """Act on ``instance``."""
        self.instance = instance

    # --- ranks --------------------------------------------------------------------------------------------------------

    def kill_rank(self, rank: Rank) -> Moment:
        """SIGKILL the scheduler: the process that holds the model."""
        scheduler = self.instance.scheduler(rank)
        moment = Moment.now()
        scheduler.kill()
        return moment

    def kill_http(self, rank: Rank) -> Moment:
        """SIGKILL the engine's main process, which serves HTTP."""
        main = self.instance.server(rank)
        moment = Moment.now()
        main.kill()
        return moment

    def kill_keeper(self, rank: Rank) -> Moment:
        """SIGKILL the process that keeps the lease of the rank's agent."""
        keeper = self.instance.keeper(rank)
        moment = Moment.now()
        keeper.kill()
        return moment

    def kill_agent(self, rank: Rank) -> Moment:
        """SIGKILL the agent; ``restart_agent`` is what systemd would do."""
        moment = Moment.now()
        self.instance.household.programs[f"rank-{rank}"].kill()
        return moment

    def restart_agent(self, rank: Rank) -> None:
        """Start the rank's agent again."""
        self._restart(f"rank-{rank}")

    def stop_rank(self, rank: Rank) -> Moment:
        """SIGSTOP the scheduler: it is there and does nothing."""
        scheduler = self.instance.scheduler(rank)
        moment = Moment.now()
        scheduler.suspend()
        return moment

    def wake(self, pid: int) -> Moment:
        """SIGCONT the process that ``stop_rank`` stopped, if it is still there."""
        moment = Moment.now()
        with contextlib.suppress(ProcessLookupError):  # its agent has ended it already: so much for the zombie
            os.kill(pid, signal.SIGCONT)
        return moment

    # --- control plane, gateway, etcd ---------------------------------------------------------------------------------

    async def leader(self) -> str:
        """Name of the leading replica."""
        found = leader_of(await self.instance.etcd.get(self.instance.keys.election))
        if found is None:
            raise InstanceError("nobody leads now")
        return decode(found.value, LeaderRecord, key=found.key).replica

    async def kill_leader(self) -> tuple[str, Moment]:
        """SIGKILL the leading control plane; its name, for ``restart``."""
        name = f"controlplane-{await self.leader()}"
        moment = Moment.now()
        self.instance.household.programs[name].kill()
        return name, moment

    def kill_gateway(self, index: int) -> Moment:
        """SIGKILL a gateway."""
        moment = Moment.now()
        self.instance.household.programs[f"gateway-{index}"].kill()
        return moment

    def restart(self, name: str) -> None:
        """Start a program of the household again after it was killed."""
        self._restart(name)

    async def stop_etcd(self, *, seconds: float) -> Moment:
        """Kill every member of etcd, and start them again after a while."""
        moment = Moment.now()
        members = self.instance.local_etcd.members
        for member in members:
            self.instance.household.programs[f"etcd-{member.name}"].kill()
        await asyncio.sleep(seconds)
        for member in members:
            self._restart(f"etcd-{member.name}")
        for member in members:
            await asyncio.to_thread(self.instance.local_etcd.wait, member)
        return moment

    def kill_etcd_member(self, index: int) -> Moment:
        """SIGKILL one member of etcd."""
        moment = Moment.now()
        self.instance.household.programs[f"etcd-{self.instance.local_etcd.members[index].name}"].kill()
        return moment

    def restart_etcd_member(self, index: int) -> None:
        """Start a killed member of etcd again."""
        self._restart(f"etcd-{self.instance.local_etcd.members[index].name}")

    async def etcd_leader(self) -> int:
        """Index of the member that leads etcd.

        Raises:
            InstanceError: none does now.
        """
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
            for index, url in enumerate(self.instance.local_etcd.endpoints):
                async with session.post(f"{url}/v3/maintenance/status", json={}) as response:
                    told = await response.json(content_type=None)
                if told["leader"] == told["header"]["member_id"]:
                    return index
        raise InstanceError("no member of etcd leads now")

    # --- operators ----------------------------------------------------------------------------------------------------

    async def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Call the admin API as the operator, at any replica that answers; (status, decoded answer).

        Raises:
            InstanceError: no replica answered within 10 s.
        """
        headers = {"Authorization": f"Bearer {self.instance.token}"}
        until = time.monotonic() + 10.0
        timeout = aiohttp.ClientTimeout(total=5.0)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            while True:
                for url in self.instance.admin_urls:
                    address = f"{url}{path}"
                    try:
                        async with session.request(method, address, json=body, allow_redirects=False) as response:
                            address = response.headers.get("Location", address)
                            if response.status not in (307, 503):
                                return response.status, await response.json(content_type=None)
                        # Followed by hand: aiohttp takes the token off on the way to the leader's own address.
                        async with session.request(method, address, json=body, allow_redirects=False) as response:
                            if response.status not in (307, 503):
                                return response.status, await response.json(content_type=None)
                    except (aiohttp.ClientError, TimeoutError):
                        continue
                if time.monotonic() > until:
                    raise InstanceError(f"no replica of the control plane answered {method} {path} within 10 s")
                await asyncio.sleep(0.1)

    async def ended(self, path: str, reason: str, *, within_s: float) -> dict[str, Any]:
        """Ask for an operation and wait for its end; its last state, ``refused`` when it was refused at once.

        Raises:
            InstanceError: it was not understood, or did not end in time.
        """
        status, answer = await self.admin("POST", path, {"reason": reason})
        if status == 409:
            return {"state": "refused", "message": answer.get("detail", "")}
        if status != 202:
            raise InstanceError(f"POST {path}: HTTP {status}: {answer}")
        until = time.monotonic() + within_s
        while True:
            _, operation = await self.admin("GET", f"/v1/operations/{answer['id']}")
            if operation["state"] not in ("pending", "running"):
                return dict(operation)
            if time.monotonic() > until:
                raise InstanceError(f"POST {path}: still {operation['state']} after {within_s:.0f} s: {operation}")
            await asyncio.sleep(0.05)

    async def done(self, path: str, reason: str, *, within_s: float) -> None:
        """Ask for an operation that must succeed.

        Raises:
            InstanceError: it did not, or not in time.
        """
        operation = await self.ended(path, reason, within_s=within_s)
        if operation["state"] != "done":
            raise InstanceError(f"POST {path}: {operation['state']}: {operation['message']}")

    @contextlib.asynccontextmanager
    async def policy(self, **changes: Any) -> AsyncIterator[None]:
        """The instance's policy with other values meanwhile."""
        etcd, key = self.instance.etcd, self.instance.keys.spec
        found = (await etcd.get(key)).only
        if found is None:
            raise InstanceError("the control plane has written no policy yet")
        await etcd.put(key, encode(structs.replace(decode(found.value, Spec, key=key), **changes)))
        try:
            yield
        finally:
            await etcd.put(key, found.value)

    def _restart(self, name: str) -> None:
        program = self.instance.household.programs[name]
        if program.process is not None:
            program.process.wait(10)
        program.start()
