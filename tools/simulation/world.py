"""One simulated instance: real coordinators and real agents over the in-memory etcd, with simulated engines.

Everything random comes from the seed, all time is virtual: a seed is a story that can be told again.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from controlplane.coordinator.shell import Coordinator, Identity
from controlplane.etcd import EtcdError, LoopLease, Put, Txn, unchanged
from schemas.codec import decode, encode
from schemas.keys import Keys
from schemas.operations import Operation, OperationKind
from schemas.policy import OnTimeout, Spec
from schemas.records import Registration
from tools.simulation.checks import Checker
from tools.simulation.engines import Engine, Fabric, Shape
from tools.simulation.etcd_model import EtcdModel, EtcdModelClient, ModelTiming
from worker.agent.core import Policy, State
from worker.agent.epochs import EpochFollower
from worker.agent.shell import Agent

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from controlplane.etcd import TxnResult
    from schemas.vocabulary import Incarnation, Rank
    from worker.agent.events import Decision, Event

T = TypeVar("T")
KEYS = Keys("sim")
REPLICAS = ("a", "b", "c")


class CheckedModel(EtcdModel):
    """Tells the checker of every commit at once, before anybody else knows."""

    checker: Checker | None = None

    def wake(self) -> None:
        """A commit or a fault happened."""
        if self.checker is not None:
            self.checker.committed()
        super().wake()


class StallingClient(EtcdModelClient):
    """A client whose process can stand still between deciding and sending: what fencing is for."""

    def __init__(self, model: EtcdModel, name: str) -> None:
        super().__init__(model, name)
        self.stall_s = 0.0
        """How long the next transaction is held back, once."""

    async def txn(self, txn: Txn) -> TxnResult:
        """See ``Etcd.txn``."""
        stall, self.stall_s = self.stall_s, 0.0
        if stall:
            await asyncio.sleep(stall)
        return await super().txn(txn)


class SimulatedAgent(Agent):
    """The real agent, with incarnations that do not come from the wall clock."""

    def _fresh_incarnation(self) -> Incarnation:
        now_ms = int(asyncio.get_running_loop().time() * 1e3) + 1
        return max(now_ms, self.state.running + 1)


@dataclass
class SilentStory:
    """What an agent tells, kept for the story of a failure."""

    note: Any
    last: str = ""

    def tell(self, before: State, event: Event, after: State, decision: Decision) -> None:
        """One event was decided."""
        del before, event
        if decision.reason and decision.reason != self.last:
            self.last = decision.reason
            self.note(f"agent {after.rank}: {decision.reason}")


@dataclass
class World:
    """The instance and the verbs for what happens to it."""

    seed: int
    ranks: int = 4
    story: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        shuffle = random.Random(self.seed + 1)
        low, high = shuffle.choice([(0.0002, 0.001), (0.0005, 0.005), (0.001, 0.03)])
        self.model = CheckedModel(
            latency_s=lambda: shuffle.uniform(low, high),
            timing=ModelTiming(notice_s=0.6, request_timeout_s=0.5, deadline_s=2.0),
        )
        thinking = random.Random(self.seed + 2)
        longest = thinking.choice([0.0, 0.1, 2.0])
        self.thought_s: Callable[[], float] = lambda: thinking.uniform(0.0, longest)
        self.checker = Checker(KEYS, self.model.store)
        self.model.checker = self.checker
        self.fabric = Fabric(self.checker, self.note)
        self.checker.engines = self.fabric.engines
        self.shape = Shape(experts=self.random.choice([4, 6, 8]), slots=4, layers=self.random.choice([1, 2]))
        self.spec = Spec(
            ranks=self.ranks,
            form_wait_s=1.0,
            prepare_deadline_s=self.random.choice([2.0, 10.0]),
            abort_deadline_s=3.0,
            activate_deadline_s=3.0,
            on_timeout=self.random.choice(list(OnTimeout)),
            silent_tie_s=0.5,
            backoff_s=0.2,
            backoff_max_s=2.0,
            flap_limit=50,
            source_retry_s=2.0,
            slow_drain_s=20.0,
            operation_deadline_s=8.0,
        )
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self.agents: dict[Rank, SimulatedAgent] = {}
        self.leases: dict[Rank, LoopLease] = {}
        self.coordinators: dict[str, Coordinator] = {}
        self.clients: dict[str, StallingClient] = {}
        self.asked = 0

    def note(self, what: str) -> None:
        """One line of the story."""
        self.story.append((asyncio.get_running_loop().time(), what))

    async def beside(self, work: Callable[..., T], *arguments: Any) -> T:
        """What takes long takes virtual time: the instance moves on meanwhile."""
        found = work(*arguments)
        await asyncio.sleep(self.thought_s())
        return found

    # --- processes ----------------------------------------------------------------------------------------------------

    def run_task(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Start a process's task under a name."""
        self.tasks[name] = asyncio.create_task(work, name=name)

    async def end_task(self, name: str) -> None:
        """End it without a chance to tidy up in etcd."""
        task = self.tasks.pop(name, None)
        if task is not None:
            self.model.partition(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.model.heal(name)

    def start_coordinator(self, name: str) -> None:
        """Start a replica of the control plane."""
        client = self.clients[name] = StallingClient(self.model, name)
        coordinator = Coordinator(
            etcd=client,
            keys=KEYS,
            identity=Identity(replica=name, admin_url=f"http://{name}"),
            take_lease=lambda: LoopLease.take(client, 2),
            spec=self.spec,
            unix_ns=lambda: int((1e9 + asyncio.get_running_loop().time()) * 1e9),
            said=lambda reason: self.note(f"leader {name}: {reason}"),
            beside=self.beside,
        )
        self.coordinators[name] = coordinator
        self.run_task(name, coordinator.run())

    def start_agent(self, rank: Rank) -> None:
        """Start a rank's agent, which starts its engine; two faults may both want to."""
        running = self.tasks.get(f"rank{rank}")
        if running is not None and not running.done():
            return
        engine = self.fabric.engines.get(rank)
        if engine is None:
            engine = Engine(rank, f"host{rank // 2}", self.shape, self.fabric, random.Random(self.seed * 1000 + rank))
            engine.attention = 0.2 if self.seed % 2 else 0.6
            self.fabric.engines[rank] = engine
        client = self.model.client(f"rank{rank}")

        async def take_lease() -> LoopLease:
            self.leases[rank] = lease = await LoopLease.take(client, 3)
            return lease

        agent = SimulatedAgent(
            state=State(
                identity=Registration(rank=rank, incarnation=0, host=engine.host),
                policy=Policy(first_backoff_s=0.1, longest_backoff_s=1.0, stable_after_s=5.0),
            ),
            etcd=client,
            keys=KEYS,
            engine=engine,
            take_lease=take_lease,
            follow=EpochFollower(client, KEYS, rank).follow,
            story=SilentStory(self.note),  # type: ignore[arg-type]
        )
        engine.heard = agent.heard
        self.agents[rank] = agent
        self.run_task(f"rank{rank}", agent.run())

    # --- faults -------------------------------------------------------------------------------------------------------

    async def kill_agent(self, rank: Rank, *, keeper: bool) -> None:
        """The agent and its engine die; a ``keeper`` revokes the lease at once, else it has to expire."""
        self.note(f"FAULT agent of rank {rank} is killed{'' if keeper else ', its host with it'}")
        self.fabric.engines[rank].heard = lambda _: None
        lease = self.leases.pop(rank, None)
        await self.end_task(f"rank{rank}")
        if lease is not None:
            await lease.abandon()
            if keeper:
                self.model.store.revoke(lease.lease, now_s=asyncio.get_running_loop().time())
                self.model.wake()

    async def ask(self, kind: OperationKind, *ranks: Rank, **more: Any) -> str:
        """An operator's request, as the admin API writes it."""
        self.asked += 1
        name = f"op{self.asked}"
        operation = Operation(
            id=name,
            kind=kind,
            who="operator",
            reason="simulation",
            ranks=ranks,
            created_unix_ns=int((1e9 + asyncio.get_running_loop().time()) * 1e9),
            **more,
        )
        self.note(f"OPERATOR {kind} {list(ranks)} {more.get('parameters', '')} as {name}")
        await self._quietly(self.model.client("operator").put(KEYS.operation(name), encode(operation)))
        return name

    async def cancel(self, name: str) -> None:
        """The operator changes their mind."""
        await self._quietly(self._cancel(name))

    async def _cancel(self, name: str) -> None:
        client = self.model.client("operator")
        found = (await client.get(KEYS.operation(name))).only
        operation = decode(found.value, Operation, key=name) if found else None
        if found is not None and operation is not None and not operation.state.final:
            self.note(f"OPERATOR cancels {name}")
            wished = msgspec.structs.replace(operation, cancel_requested="operator")
            await client.txn(
                Txn(when=(unchanged(found.key, found.mod_revision),), then=(Put(found.key, encode(wished)),))
            )

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except EtcdError as error:
            self.note(f"the operator is told: {error}")

    # --- how it stands ------------------------------------------------------------------------------------------------

    def unsettled(self) -> str:
        """What still keeps the instance from being whole again; empty when nothing does."""
        record = self.checker.record
        if record is None:
            return "no epoch was ever committed"
        if record.preparing is not None:
            return f"epoch {record.preparing.epoch} is being prepared"
        if record.committed.missing:
            return f"{record.committed.missing} experts are missing"
        members = {member.rank: member.incarnation for member in record.committed.members}
        for rank, engine in sorted(self.fabric.engines.items()):
            if members.get(rank) != engine.incarnation or not engine.alive:
                return f"rank {rank} (incarnation {engine.incarnation}) is no member of epoch {record.committed.epoch}"
            if engine.active is None or engine.active.epoch != record.committed.epoch:
                return f"rank {rank} has not crossed into epoch {record.committed.epoch}"
        return ""
