"""N engines without etcd, agents or gateway: this plays the agents' part, with the product's own launcher and client.

async with BareCluster(folder=…, model=…, ranks=4, slots=12) as cluster:
await cluster.change(cluster.placement())                    # epoch 1
cluster.kill(2)
await cluster.change(cluster.placement([0, 1, 3]), cut=Cut.ABORT)
await cluster.revive(2)                                      # a new incarnation, not yet a member
await cluster.change(cluster.placement())
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

from native import _native
from schemas.messages import Commit, Load, Peer, Prepare
from schemas.placement import Placement
from schemas.vocabulary import Cut, Member, stamp_of
from worker.engine.client import EngineClient, EngineGoneError
from worker.engine.launch import EngineConfig, EngineProcess, free_port
from worker.engine.settings import EngineSettings, Missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from schemas.messages import Hello, Prepared
    from schemas.vocabulary import Epoch, Rank

_START_S = 300.0
"""An engine imports SGLang for 20 s alone on two cores; four at once take about four times as long."""


class EngineStartError(RuntimeError):
    """An engine ended before it was ready, or was not in time; the message has the end of its log."""


@dataclass
class Engine:
    """One rank's engine, its control block and our end of its socket."""

    config: EngineConfig
    client: EngineClient
    control: _native.ControlBlock
    process: EngineProcess

    @property
    def url(self) -> str:
        """SGLang's HTTP address."""
        return self.config.settings.serve_url

    @property
    def hello(self) -> Hello:
        """What the engine said of itself.

        Raises:
            EngineGoneError: it has not spoken.
        """
        if self.client.hello is None:
            raise EngineGoneError(f"the engine of rank {self.config.settings.rank} has not said Hello")
        return self.client.hello

    @property
    def member(self) -> Member:
        """The rank and the process that fills it."""
        return Member(self.config.settings.rank, self.config.settings.incarnation)


@dataclass
class BareCluster:
    """Engines of one instance on this host.

    Attributes:
        folder: for sockets, logs and settings; short, since a Unix socket's path has at most 107 bytes.
        model: checkpoint folder.
        ranks: engines to start.
        slots: expert slots of each rank and layer.
        max_ranks: rank slots of the instance; None is ``ranks``.
        dtype, overlap, chunked_prefill, max_tokens, missing_experts, silence_s, max_total_tokens: see EngineConfig and
            EngineSettings.
        extra: further SGLang arguments.
    """

    folder: Path
    model: Path
    ranks: int
    slots: int
    max_ranks: int | None = None
    dtype: str = "float32"
    overlap: bool | None = None
    chunked_prefill: int | None = None
    max_tokens: int = 256
    max_total_tokens: int = 8192
    missing_experts: Missing = Missing.STRICT
    silence_s: float = 1.0
    extra: tuple[str, ...] = ()
    engines: dict[Rank, Engine] = field(default_factory=dict)
    epoch: Epoch = 0
    members: tuple[Member, ...] = ()
    _incarnation: int = 0

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self.revive(rank) for rank in range(self.ranks)))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        await self._end()

    async def _end(self) -> None:
        for engine in self.engines.values():
            engine.process.kill()
            await engine.client.__aexit__(None, None, None)
        self.engines.clear()

    # --- processes ----------------------------------------------------------------------------------------------------

    async def revive(self, rank: Rank) -> Engine:
        """Start an engine for ``rank`` as a new incarnation and wait until it is ready to prepare.

        Raises:
            EngineStartError: it ended instead, or took too long.
        """
        former = self.engines.pop(rank, None)
        if former is not None:
            former.process.kill()
            await former.client.__aexit__(None, None, None)
        self._incarnation += 1
        config = self._config(rank, self._incarnation)
        settings = config.settings
        self.folder.mkdir(parents=True, exist_ok=True)
        client = await EngineClient(settings.agent_socket, expect=settings.incarnation).__aenter__()
        control = _native.ControlBlock.create(settings.control_path, rank=rank, incarnation=settings.incarnation)
        engine = Engine(config, client, control, EngineProcess(config))
        self.engines[rank] = engine
        await self._until_ready(engine)
        return engine

    async def _until_ready(self, engine: Engine) -> None:
        ready = asyncio.ensure_future(engine.client.wait(lambda: engine.client.ready, within_s=_START_S))
        while not ready.done():
            await asyncio.wait([ready], timeout=0.2)
            if engine.process.ended() is not None:
                ready.cancel()
                raise EngineStartError(engine.process.last_lines())
        try:
            await ready
        except TimeoutError as error:
            raise EngineStartError(f"not ready after {_START_S:.0f} s: {engine.process.last_lines()}") from error

    def kill(self, rank: Rank) -> None:
        """SIGKILL the whole process tree of a rank."""
        self.engines[rank].process.kill()

    def _config(self, rank: Rank, incarnation: int) -> EngineConfig:
        port = free_port()
        here = self.folder
        settings = EngineSettings(
            rank=rank,
            incarnation=incarnation,
            max_ranks=self.max_ranks or self.ranks,
            slots=self.slots,
            control_path=str(here / f"control-{rank}-{incarnation}"),
            agent_socket=str(here / f"agent-{rank}"),
            link_socket=str(here / f"link-{rank}-{incarnation}"),
            serve_url=f"http://127.0.0.1:{port}",
            model_path=str(self.model),
            manifest_dir=str(here / "manifests"),
            max_tokens=self.max_tokens,
            silence_s=self.silence_s,
            missing_experts=self.missing_experts,
        )
        return EngineConfig(
            settings=settings,
            host="127.0.0.1",
            port=port,
            folder=here,
            dtype="float32" if self.dtype == "float32" else "bfloat16",
            overlap=self.overlap,
            chunked_prefill=self.chunked_prefill,
            max_total_tokens=self.max_total_tokens,
            extra=self.extra,
        )

    # --- epochs -------------------------------------------------------------------------------------------------------

    def placement(self, ranks: Iterable[Rank] | None = None) -> Placement:
        """Experts dealt round robin over ``ranks``, all of them if None."""
        hello = next(iter(self.engines.values())).hello
        return Placement.round_robin(
            layers=hello.layers,
            experts=hello.experts,
            ranks=range(self.ranks) if ranks is None else ranks,
            max_ranks=self.max_ranks or self.ranks,
            slots=self.slots,
        )

    async def change(
        self,
        placement: Placement,
        *,
        cut: Cut = Cut.PLANNED,
        ranks: Iterable[Rank] | None = None,
        loads: Mapping[Rank, tuple[Load, ...]] | None = None,
        within_s: float = 60.0,
    ) -> dict[Rank, Prepared]:
        """Prepare and commit the next epoch, and wait until every member runs under it.

        Args:
            placement: of the new epoch.
            cut: PLANNED waits for every acknowledgement before it commits; ABORT calls the running step off at once.
            ranks: members; those with a slot in ``placement`` if None.
            loads: sources of slots to fill; what is not listed comes from the checkpoint.
            within_s: deadline of each of the two phases.

        Returns:
            What each rank answered.
        """
        members = self._members(placement, ranks)
        leaving = [member for member in self.members if member not in members] if cut is Cut.PLANNED else []
        asked = [self.engines[member.rank] for member in (*members, *leaving)]
        self.epoch += 1
        epoch = self.epoch
        if cut is Cut.ABORT:
            for engine in asked:
                engine.control.abort(stamp_of(epoch))
        request = Prepare(
            epoch=epoch,
            stamp=stamp_of(epoch),
            members=members,
            peers=tuple(self._peer(member) for member in members),
            placement=placement.wire,
            cut=cut,
            deadline_s=within_s,
        )
        answers = await asyncio.gather(
            *(
                engine.client.prepare(structs.replace(request, loads=(loads or {}).get(engine.member.rank, ())))
                for engine in asked
            )
        )
        prepared = {engine.member.rank: answer for engine, answer in zip(asked, answers, strict=True)}
        if all(answer.ok for answer in answers):
            await self._commit(asked, epoch, cut)
            await asyncio.gather(*(self._crossed(engine, epoch, within_s) for engine in asked))
            self.members = members
        return prepared

    async def _commit(self, engines: list[Engine], epoch: Epoch, cut: Cut) -> None:
        for engine in engines:
            engine.control.commit(epoch)
            await engine.client.send(Commit(epoch=epoch, stamp=stamp_of(epoch), cut=cut))

    @staticmethod
    async def _crossed(engine: Engine, epoch: Epoch, within_s: float) -> None:
        def look() -> bool | None:
            activated = engine.client.activated
            return True if activated is not None and activated.epoch >= epoch else None

        await engine.client.wait(look, within_s=within_s)

    def _members(self, placement: Placement, ranks: Iterable[Rank] | None) -> tuple[Member, ...]:
        if ranks is None:
            ranks = [rank for rank in range(placement.max_ranks) if (placement.weights[:, rank] > 0).any()]
        return tuple(self.engines[rank].member for rank in sorted(ranks))

    def _peer(self, member: Member) -> Peer:
        return Peer(
            rank=member.rank,
            incarnation=member.incarnation,
            host="localhost",
            link_address=self.engines[member.rank].config.settings.link_socket,
        )
