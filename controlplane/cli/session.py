"""How every command runs: settings resolved, client opened, errors turned into words on stderr and an exit code."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from controlplane.cli import pages, waiting
from controlplane.cli.client import Api
from controlplane.cli.exits import CliError, UsageError
from controlplane.cli.settings import Settings
from controlplane.cli.tables import Output, print_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

Result = TypeVar("Result")
WAIT_S = 600.0
"""Patience of --wait unless told otherwise."""

OutputFlag = Annotated[Output, typer.Option("--output", "-o", help="table, wide or json.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; shown with who and when.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Predict instead of perform.")]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Follow it to its end.")]
Deadline = Annotated[float, typer.Option("--deadline", min=0, help="Seconds until it must be done; 0: the policy's.")]
WaitFor = Annotated[float, typer.Option("--wait-timeout", min=0.1, help="Give up waiting after so many seconds.")]
Epoch = Annotated[int, typer.Option("--epoch", min=0, help="Refuse unless this epoch is still committed.")]


def perform(context: typer.Context, work: Callable[[Api], Awaitable[Result]]) -> Result:
    """Run ``work`` with a client; a ``CliError`` ends the process with its code."""
    try:
        return asyncio.run(_with_client(context.obj, work))
    except CliError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.code) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _with_client(settings: Settings, work: Callable[[Api], Awaitable[Result]]) -> Result:
    async with Api(settings) as api:
        return await work(api)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that destroys.

    Raises:
        UsageError: there is nobody to ask and --yes was not given.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is here to answer: say --yes")
    typer.confirm(question, abort=True)


@dataclass(frozen=True, kw_only=True)
class How:
    """The flags that all changes share.

    Attributes:
        dry_run: show the prediction and stop.
        follow: wait for the end, for ``wait_s`` seconds.
        epoch: the epoch that must still be committed, 0 for any.
        ask: a question to put, below the prediction, before something that destroys; empty asks nothing.
        yes: do not put it.
        output: how the result is shown.
    """

    dry_run: bool = False
    follow: bool = False
    wait_s: float = WAIT_S
    epoch: int = 0
    ask: str = ""
    yes: bool = False
    output: Output = Output.TABLE

    def asking(self, question: str) -> How:
        """The same, with a question."""
        return replace(self, ask=question)


def submit(context: typer.Context, path: str, said: Mapping[str, object], how: How) -> None:
    """A command that is one change and nothing else."""
    perform(context, lambda api: change(api, path, said, how))


async def change(api: Api, path: str, said: Mapping[str, object], how: How) -> None:
    """One change from prediction to end: ``said`` is POSTed to ``path``.

    Raises:
        CliError: refused, unreachable, failed, or waited too long.
    """
    if how.dry_run or (how.ask and not how.yes):
        predicted = await api.change("POST", path, said, dry_run=True, epoch=how.epoch)
        _show(predicted, pages.forecast(predicted), output=how.output)
        if how.dry_run:
            return
        confirm(how.ask, yes=how.yes)
    operation = await api.change("POST", path, said, epoch=how.epoch)
    await settle(api, operation, how)


async def settle(api: Api, operation: dict[str, Any], how: How) -> None:
    """Wait for an accepted operation if asked to, and say how it stands."""
    if how.follow:
        operation = await waiting.wait(api, operation, deadline_s=how.wait_s, console=Console(stderr=True))
    told = f"{operation['kind']} {operation['id']}: {operation['state']}"
    told += f" · epoch {operation['epoch']}" if operation["epoch"] else ""
    told += f" · {operation['message']}" if operation["message"] else ""
    _show(operation, told, output=how.output)


def _show(document: dict[str, Any], words: object, *, output: Output) -> None:
    if output is Output.JSON:
        print_json(document)
    else:
        Console(highlight=False, soft_wrap=True).print(words)
