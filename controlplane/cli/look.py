"""Commands that only read: status, watch, ops, epochs, recoveries, events, doctor."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from controlplane.cli import doctor, pages
from controlplane.cli.exits import Exit, UnreachableError
from controlplane.cli.session import OutputFlag, perform
from controlplane.cli.tables import Output, duration, print_json, show, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from controlplane.cli.client import Api

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, newest first.")]
SETTLE_S = 0.1
"""Events of one change come together: one redraw for all of them."""
AGAIN_S = 1.0


async def _first_page(api: Api) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return await api.get("/v1/cluster"), (await api.get("/v1/ranks"))["ranks"]


def status(context: typer.Context, *, output: OutputFlag = Output.TABLE) -> None:
    """The ranks, and the instance in one line."""

    async def work(api: Api) -> None:
        cluster, ranks = await _first_page(api)
        if output is Output.JSON:
            print_json({"cluster": cluster, "ranks": ranks})
            return
        console = Console()
        page = pages.status(cluster, ranks, wide=output is Output.WIDE)
        (console if console.is_terminal else Console(width=250)).print(page)

    perform(context, work)


def watch(context: typer.Context, *, output: OutputFlag = Output.TABLE) -> None:
    """``status``, drawn again at every change until interrupted; into a pipe, page after page."""

    async def work(api: Api) -> None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=250)
        with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
            draw = partial(live.update, refresh=True) if live else console.print
            while True:
                try:
                    await _redraw_on_change(api, draw, wide=output is Output.WIDE)
                except UnreachableError as error:
                    draw(Text(str(error), style="bold red"))
                await asyncio.sleep(AGAIN_S)

    perform(context, work)


async def _redraw_on_change(api: Api, draw: Callable[[RenderableType], None], *, wide: bool) -> None:
    """Until the stream ends: the replica went away, or cannot resume."""
    cluster, ranks = await _first_page(api)
    draw(pages.status(cluster, ranks, wide=wide))
    async with api.events(after=cluster["revision"]) as events, aclosing(events):
        async for event in events:
            if event.name != "open":
                await asyncio.sleep(SETTLE_S)
                draw(pages.status(*await _first_page(api), wide=wide))


def epochs(context: typer.Context, *, limit: Limit = 20, output: OutputFlag = Output.TABLE) -> None:
    """The last epochs: who was in, who decided it, and why."""

    async def work(api: Api) -> None:
        document = await api.get("/v1/epochs", limit=limit)
        show(document, pages.EPOCHS, document["epochs"], output=output)

    perform(context, work)


def recoveries(
    context: typer.Context,
    recovery: Annotated[str, typer.Argument(help="One of them, phase by phase.")] = "",
    *,
    limit: Limit = 20,
    output: OutputFlag = Output.TABLE,
) -> None:
    """The last changes of membership: how long, phase by phase, on whose word."""

    async def work(api: Api) -> None:
        if recovery:
            _show_recovery(await api.get(f"/v1/recoveries/{recovery}"), output=output)
            return
        document = await api.get("/v1/recoveries", limit=limit)
        show(document, pages.RECOVERIES, document["recoveries"], output=output)

    perform(context, work)


def _show_recovery(row: dict[str, Any], *, output: Output) -> None:
    if output is Output.JSON:
        print_json(row)
        return
    lines = [
        Text(
            f"{row['id']} · epoch {row['epoch_before']} → {row['epoch']} · {duration(row['seconds'])} · {row['reason']}"
        )
    ]
    lines += [
        Text(f"  rank {one['rank']} excluded: {one['evidence']}, by {one['reporters'] or 'the leader'} {one['detail']}")
        for one in row["blamed"]
    ]
    if row["trace_id"]:
        lines.append(Text(f"  trace {row['trace_id']}"))
    Console(highlight=False).print(Group(*lines, table(pages.PHASES, row["phases"], wide=output is Output.WIDE)))


def events(
    context: typer.Context,
    *,
    after: Annotated[int, typer.Option(help="Revision to go on after; 0: now.")] = 0,
    output: OutputFlag = Output.TABLE,
) -> None:
    """What changes, line by line, until interrupted; with ``-o json`` one object a line."""

    async def work(api: Api) -> None:
        start = after or (await api.get("/v1/cluster"))["revision"]
        async with api.events(after=start) as stream, aclosing(stream):
            async for event in stream:
                if event.name == "open":
                    continue
                typer.echo(_event_line(event.name, event.data, output=output))

    perform(context, work)


def _event_line(name: str, data: dict[str, Any], *, output: Output) -> str:
    if output is Output.JSON:
        return msgspec.json.encode({"event": name, **data}).decode()
    record = data.get("record")
    if record is None:
        return f"{data.get('revision', '-'):>8}  {name:<10} {data.get('key', '')} {data.get('detail', 'gone')}"
    said = record.get("reason") or record.get("message") or record.get("outcome") or ""
    state = record.get("state") or (record.get("committed") or {}).get("epoch") or record.get("epoch") or ""
    return f"{data['revision']:>8}  {name:<10} {data['key']} {state} {said}".rstrip()


def examine(context: typer.Context, *, output: OutputFlag = Output.TABLE) -> None:
    """Check replicas, leader, coverage, ranks and operations; exit 7 when something needs a person."""

    async def work(api: Api) -> list[dict[str, Any]]:
        return await doctor.examine(api)

    findings = perform(context, work)
    show({"findings": findings}, doctor.COLUMNS, findings, output=output)
    if all(finding["check"] == "endpoint" for finding in findings):
        raise typer.Exit(Exit.UNREACHABLE)
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(Exit.UNHEALTHY)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (status, watch, epochs, recoveries, events):
        app.command()(command)
    app.command("doctor")(examine)
