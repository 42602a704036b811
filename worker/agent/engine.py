"""The engine as the agent holds it: its process tree, its control block, its socket, and the sight of its death."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from native import ControlBlock
from schemas.messages import Hello, Ready
from worker.agent.events import EngineEnded, Heard
from worker.engine import yielding
from worker.engine.client import EngineClient, EngineGoneError
from worker.engine.launch import EngineConfig, EngineProcess, arguments, free_port, prepare
from worker.engine.settings import EngineSettings, Missing
from worker.engine.template.client import Template
from worker.engine.tree import EngineTree

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.config import Config
    from schemas.messages import ToEngine
    from schemas.vocabulary import Epoch, Incarnation, Rank, Stamp
    from worker.agent.events import Event

log = logging.getLogger(__name__)

_CLEAR_AFTER_S = 0.3
"""A recovery is over by then; finding and ending what a dead engine leaves takes ten milliseconds of a core or more."""

_AGAIN_S = 0.15
"""Linux lets users change the priority of a session ten times a second, all together."""

_WITH_HEIRS = 16
"""Dead engines whose memory may not be back yet: more than can be started in ten seconds."""


class Engine:
    """One rank's engine over all its incarnations; at most one runs.

    Args:
        config: the instance's settings.
        rank: which rank.
        folder: for sockets, control block and logs of this rank.
    """

    def __init__(self, *, config: Config, rank: Rank, folder: Path) -> None:
        self._config = config
        self._rank = rank
        self._folder = folder
        self._heard: Callable[[Event], None]
        self._client = EngineClient(str(folder / "agent.sock"))
        self._template: Template | None = None
        """What engines are forked from, once one was started; never where there is a GPU."""
        self._starting: asyncio.Task[None] | None = None
        """Until the engine in question has ended."""
        self._process: EngineTree | None = None
        """None until its main process runs, which takes a moment from ``start``."""
        self._former: deque[EngineTree] = deque(maxlen=_WITH_HEIRS)
        self._control: ControlBlock | None = None
        self._incarnation: Incarnation = 0
        self._pidfds: list[int] = []
        self._scheduler = -1
        """Pidfd of the process that steps, −1 until it spoke."""
        self._tasks: list[asyncio.Task[None]] = []
        self._late: asyncio.TimerHandle | None = None
        self._clearing: asyncio.Task[None] | None = None
        self._ending = asyncio.Lock()
        self._outbox: asyncio.Queue[tuple[Incarnation, ToEngine]] = asyncio.Queue()

    async def open(self, heard: Callable[[Event], None]) -> None:
        """Listen for engines; ``heard`` receives ``Heard`` and ``EngineEnded``, on the loop."""
        self._heard = heard
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        await self._client.__aenter__()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._speak())]

    async def close(self) -> None:
        """End what runs and stop listening."""
        await self.end(fence=True)
        if self._template is not None:
            self._template.end()
        for process in self._former:
            await asyncio.to_thread(process.end_heirs)
        tasks = [*self._tasks, *((self._clearing,) if self._clearing else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.__aexit__(None, None, None)

    async def start(self, incarnation: Incarnation) -> None:
        """Start the process tree; return at once."""
        await self.end(fence=False)
        self._incarnation = incarnation
        self._client.expect = incarnation
        self._control = ControlBlock.create(
            str(self._folder / f"control-{incarnation}"), rank=self._rank, incarnation=incarnation
        )
        self._starting = asyncio.create_task(self._start(self._engine_config(incarnation, self._control.path)))
        deadline = self._config.worker.start_deadline_s
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(deadline, self._ended, incarnation, f"not ready within {deadline:.0f} s")

    async def _start(self, config: EngineConfig) -> None:
        incarnation = config.settings.incarnation
        try:
            self._process = await self._launch(config)
        except Exception as error:  # whatever it is, the rank has no engine now and tries again
            log.exception("rank %d: the engine could not be started", self._rank)
            self._ended(incarnation, f"it could not be started: {error}")
        else:
            self._watch(self._process.pid, "the server's main process ended")

    async def _launch(self, config: EngineConfig) -> EngineTree:
        if config.device != "cpu":
            return EngineProcess(config)
        variables = await asyncio.to_thread(prepare, config)
        if self._template is None:
            self._template = Template(variables, self._folder / f"template-{self._rank}.log")
        return EngineTree(await self._template.fork(arguments(config), config.log))

    async def end(self, *, fence: bool) -> None:
        """End the process tree; return when none of it is left."""
        async with self._ending:
            await self._end(fence=fence)

    async def _end(self, *, fence: bool) -> None:
        if fence:
            self.fence()
        if self._late is not None:
            self._late.cancel()
        self._unwatch()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None
        if self._process is not None:
            process, self._process = self._process, None
            self._former.append(process)
            await asyncio.to_thread(process.kill, spare_heirs=True)
        if self._control is not None:
            await asyncio.to_thread(Path(self._control.path).unlink, missing_ok=True)
            self._control = None

    def fence(self) -> None:
        """Let the engine write to nobody any more, and kill the process that steps; return at once."""
        if self._control is not None:
            self._control.fenced = True
        if self._scheduler >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._scheduler, signal.SIGKILL)

    def clear_away(self) -> None:
        """End what a dead engine left of its process tree, soon; return at once."""
        self._clearing = asyncio.create_task(self._clear_away(self._incarnation))

    async def _clear_away(self, incarnation: Incarnation) -> None:
        await asyncio.sleep(_CLEAR_AFTER_S)
        async with self._ending:
            if incarnation == self._incarnation:
                await self._end(fence=False)

    def send(self, message: ToEngine) -> None:
        """Send, in order; a message to an engine that is gone is dropped."""
        self._outbox.put_nowait((self._incarnation, message))

    def call_off(self, stamp: Stamp) -> None:
        """Abandon steps under earlier versions."""
        if self._control is not None:
            self._control.abort(stamp)

    def committed(self, epoch: Epoch) -> None:
        """Make known that an epoch is decided."""
        if self._control is not None:
            self._control.commit(epoch)

    # --- what the engine says, and what its processes do --------------------------------------------------------------

    async def _listen(self) -> None:
        async for message in self._client.messages():
            if message is None:
                continue  # it hung up: its pidfd will say why
            if isinstance(message, Hello):
                self._scheduler = self._watch(message.pid, "its scheduler ended")
            if isinstance(message, Ready) and self._late is not None:
                self._late.cancel()
            if isinstance(message, Ready) and self._process is not None:
                self._process.started()
                self._catch_up(self._process)
            self._heard(Heard(asyncio.get_running_loop().time(), message))

    def _catch_up(self, process: EngineTree) -> None:
        if not yielding.catch_up(process.pid):
            asyncio.get_running_loop().call_later(_AGAIN_S, self._catch_up, process)

    async def _speak(self) -> None:
        while True:
            incarnation, message = await self._outbox.get()
            if incarnation != self._incarnation:
                continue  # it was for an engine that is gone
            try:
                await self._client.send(message)
            except EngineGoneError as error:
                log.info("rank %d: %s", self._rank, error)

    def _watch(self, pid: int, meaning: str) -> int:
        """See the process end; its pidfd, −1 if it has ended already."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended(self._incarnation, meaning)
            return -1
        self._pidfds.append(pidfd)
        asyncio.get_running_loop().add_reader(pidfd, self._ended, self._incarnation, meaning)
        return pidfd

    def _unwatch(self) -> None:
        for pidfd in self._pidfds:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._pidfds, self._scheduler = [], -1

    def _ended(self, incarnation: Incarnation, how: str) -> None:
        if incarnation != self._incarnation or self._starting is None:
            return
        self.fence()  # an engine without its server is none: its peers need not wait for it
        self._unwatch()
        self._heard(EngineEnded(asyncio.get_running_loop().time(), incarnation, how, time.time_ns()))

    # --- configuration ------------------------------------------------------------------------------------------------

    def _engine_config(self, incarnation: Incarnation, control_path: str) -> EngineConfig:
        instance, worker = self._config.instance, self._config.worker
        port = worker.first_port + self._rank if worker.first_port else free_port()
        settings = EngineSettings(
            rank=self._rank,
            incarnation=incarnation,
            max_ranks=instance.max_ranks,
            slots=worker.slots or instance.slots_per_rank,
            control_path=control_path,
            agent_socket=self._client.path,
            link_socket=str(self._folder / f"link-{incarnation}.sock"),
            serve_url=f"http://{worker.serve_host}:{port}",
            model_path=instance.model,
            manifest_dir=str(self._folder.parent / "manifest"),
            max_tokens=worker.chunked_prefill,
            silence_s=worker.silence_s,
            step_deadline_s=worker.step_deadline_s,
            background_mb_per_s=worker.background_mb_per_s,
            missing_experts=Missing.BEST_EFFORT if worker.best_effort else Missing.STRICT,
            device=worker.device,
        )
        return EngineConfig(
            settings=settings,
            host=worker.serve_host,
            port=port,
            folder=self._folder,
            device=worker.device,
            dtype=worker.dtype,
            max_total_tokens=worker.max_total_tokens,
            chunked_prefill=worker.chunked_prefill,
            extra=worker.engine_arguments,
        )
