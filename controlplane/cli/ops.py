"""``eepctl ops``: what was asked, by whom and why, and how to stop or undo it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from controlplane.cli import pages
from controlplane.cli.session import (
    WAIT_S,
    DryRun,
    How,
    OutputFlag,
    Reason,
    Wait,
    WaitFor,
    Yes,
    confirm,
    perform,
    settle,
    submit,
)
from controlplane.cli.tables import Output, print_json, show

if TYPE_CHECKING:
    from controlplane.cli.client import Api

operations = typer.Typer(
    help="What was asked, by whom and why; without a command: the list.", invoke_without_command=True
)


@operations.callback()
def list_operations(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 20,
    output: OutputFlag = Output.TABLE,
) -> None:
    """The last operations, newest first."""
    if context.invoked_subcommand:
        return

    async def work(api: Api) -> None:
        document = await api.get("/v1/operations", limit=limit)
        show(document, pages.OPERATIONS, document["operations"], output=output)

    perform(context, work)


@operations.command("show")
def show_operation(context: typer.Context, operation: str, *, output: OutputFlag = Output.TABLE) -> None:
    """One operation, phase by phase."""

    async def work(api: Api) -> None:
        found = await api.get(f"/v1/operations/{quote(operation, safe='')}")
        if output is Output.JSON:
            print_json(found)
            return
        show(found, pages.OPERATIONS, [found], output=output)
        show(found, pages.PHASES, found["phases"], output=output)

    perform(context, work)


@operations.command("wait")
def wait_operation(
    context: typer.Context, operation: str, *, wait_timeout: WaitFor = WAIT_S, output: OutputFlag = Output.TABLE
) -> None:
    """Follow one to its end."""

    async def work(api: Api) -> None:
        found = await api.get(f"/v1/operations/{quote(operation, safe='')}")
        await settle(api, found, How(follow=True, wait_s=wait_timeout, output=output))

    perform(context, work)


@operations.command("cancel")
def cancel_operation(
    context: typer.Context, operation: str, *, yes: Yes = False, output: OutputFlag = Output.TABLE
) -> None:
    """Stop one and take back what it began (asks first)."""

    async def work(api: Api) -> None:
        confirm(f"Cancel {operation}?", yes=yes)
        found = await api.change("DELETE", f"/v1/operations/{quote(operation, safe='')}")
        await settle(api, found, How(output=output))

    perform(context, work)


@operations.command("rollback")
def rollback_operation(
    context: typer.Context,
    operation: str,
    *,
    reason: Reason = "",
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Undo one that has ended, by its opposite (asks first)."""
    how = How(dry_run=dry_run, follow=wait, wait_s=wait_timeout, yes=yes, output=output, ask=f"Undo {operation}?")
    submit(context, f"/v1/operations/{quote(operation, safe='')}:rollback", {"reason": reason}, how)
