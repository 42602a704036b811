"""Commands that change the instance: each is one operation; ``--dry-run`` predicts it, ``--wait`` follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from controlplane.cli import pages
from controlplane.cli.exits import UsageError
from controlplane.cli.session import (
    Deadline,
    DryRun,
    Epoch,
    OutputFlag,
    Reason,
    Wait,
    WaitFor,
    Yes,
    change,
    confirm,
    perform,
    settle,
)
from controlplane.cli.tables import Output, print_json, show

if TYPE_CHECKING:
    from controlplane.cli.client import Api

RankArgument = Annotated[int, typer.Argument(min=0, help="The rank.")]
NeededReason = Annotated[str, typer.Option("--reason", "-r", help="Why; shown with who and when. Required.")]
Ranks = Annotated[list[int] | None, typer.Option("--rank", help="A rank; repeat.")]
WAIT_S = 600.0


def drain(
    context: typer.Context,
    rank: Annotated[int | None, typer.Argument(min=0, help="The rank.")] = None,
    *,
    reason: NeededReason,
    host: Annotated[str, typer.Option(help="Instead of a rank: every rank of this host (asks first).")] = "",
    deadline: Deadline = 0.0,
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    dry_run: DryRun = False,
    epoch: Epoch = 0,
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Take a rank out without losing a request, and keep it out until ``rejoin``."""

    async def work(api: Api) -> None:
        if (rank is None) is (not host):
            raise UsageError("name a rank, or --host, and not both")
        path = f"/v1/hosts/{quote(host, safe='')}:drain" if host else f"/v1/ranks/{rank}:drain"
        await change(
            api,
            path,
            {"reason": reason, "deadline_s": deadline},
            dry_run=dry_run,
            follow=wait,
            wait_s=wait_timeout,
            epoch=epoch,
            ask=f"Drain every rank of {host}?" if host else "",
            yes=yes,
            output=output,
        )

    perform(context, work)


def cordon(
    context: typer.Context, rank: RankArgument, *, reason: NeededReason, output: OutputFlag = Output.TABLE
) -> None:
    """Let no epoch add the rank; an active one serves on."""

    async def work(api: Api) -> None:
        await change(api, f"/v1/ranks/{rank}:cordon", {"reason": reason}, output=output)

    perform(context, work)


def uncordon(
    context: typer.Context, rank: RankArgument, *, reason: Reason = "", output: OutputFlag = Output.TABLE
) -> None:
    """Undo a cordon; the flap limit's hold too."""

    async def work(api: Api) -> None:
        await change(api, f"/v1/ranks/{rank}:uncordon", {"reason": reason}, output=output)

    perform(context, work)


def rejoin(
    context: typer.Context,
    rank: RankArgument,
    *,
    reason: Reason = "",
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    dry_run: DryRun = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Undo a drain, a cordon, a loan or a flap hold, and bring the rank back."""

    async def work(api: Api) -> None:
        await change(
            api,
            f"/v1/ranks/{rank}:rejoin",
            {"reason": reason},
            dry_run=dry_run,
            follow=wait,
            wait_s=wait_timeout,
            output=output,
        )

    perform(context, work)


def replace(
    context: typer.Context,
    rank: RankArgument,
    *,
    by: Annotated[int, typer.Option(min=0, help="The spare rank.")],
    reason: NeededReason,
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Exchange a rank for a spare one, in one epoch (asks first)."""

    async def work(api: Api) -> None:
        await change(
            api,
            f"/v1/ranks/{rank}:replace",
            {"by": by, "reason": reason},
            dry_run=dry_run,
            follow=wait,
            wait_s=wait_timeout,
            ask=f"Replace rank {rank} by rank {by}?",
            yes=yes,
            output=output,
        )

    perform(context, work)


def scale(
    context: typer.Context,
    target: Annotated[int, typer.Argument(min=1, help="How many ranks.")],
    *,
    rank: Ranks = None,
    reason: Reason = "",
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    dry_run: DryRun = False,
    epoch: Epoch = 0,
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Keep TARGET ranks; --rank names those that leave first (asks first when it takes ranks away)."""

    async def work(api: Api) -> None:
        now = len((await api.get("/v1/cluster"))["members"])
        await change(
            api,
            "/v1/scale",
            {"target": target, "ranks": rank or [], "reason": reason},
            dry_run=dry_run,
            follow=wait,
            wait_s=wait_timeout,
            epoch=epoch,
            ask=f"Scale from {now} down to {target} ranks?" if target < now else "",
            yes=yes,
            output=output,
        )

    perform(context, work)


def rebalance(
    context: typer.Context,
    *,
    max_bytes: Annotated[int, typer.Option(min=0, help="Move no more than this; 0: no limit.")] = 0,
    reason: Reason = "",
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    dry_run: DryRun = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Give the same ranks the best placement for the load of now."""

    async def work(api: Api) -> None:
        await change(
            api,
            "/v1/rebalance",
            {"max_bytes": max_bytes, "reason": reason},
            dry_run=dry_run,
            follow=wait,
            wait_s=wait_timeout,
            output=output,
        )

    perform(context, work)


def plan(
    context: typer.Context,
    *,
    target: Annotated[int, typer.Option("--target", min=0, help="Scale to so many ranks.")] = 0,
    drained: Annotated[list[int] | None, typer.Option("--drain", help="Without this rank.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run/--apply", help="Predict (default), or perform.")] = True,
    reason: Reason = "planned with eepctl plan",
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """What a change would cost: a rebalance, or --target or --drain. Performs it only with --apply."""

    async def work(api: Api) -> None:
        if target and drained:
            raise UsageError("--target and --drain are two plans: choose one")
        body: dict[str, object] = {"reason": reason}
        path = "/v1/rebalance"
        if target:
            path, body = "/v1/scale", {**body, "target": target}
        elif drained:
            now = len((await api.get("/v1/cluster"))["members"])
            path = f"/v1/ranks/{drained[0]}:drain"
            if len(drained) > 1:
                path, body = "/v1/scale", {**body, "target": max(now - len(drained), 1), "ranks": drained}
        await change(api, path, body, dry_run=dry_run, ask="Perform this?", yes=yes, output=output)

    perform(context, work)


def lend(
    context: typer.Context,
    ranks: Annotated[list[int], typer.Argument(help="The ranks.")],
    *,
    to: Annotated[str, typer.Option(help="To whom.")],
    reason: NeededReason,
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Drain ranks and lend them to someone else (asks first); ``reclaim`` takes them back."""

    async def work(api: Api) -> None:
        await change(
            api,
            "/v1/loans",
            {"action": "lend", "ranks": ranks, "to": to, "reason": reason},
            dry_run=dry_run,
            follow=wait,
            wait_s=wait_timeout,
            ask=f"Lend {len(ranks)} ranks to {to}?",
            yes=yes,
            output=output,
        )

    perform(context, work)


def reclaim(
    context: typer.Context,
    ranks: Annotated[list[int], typer.Argument(help="The ranks.")],
    *,
    reason: Reason = "",
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Take lent ranks back."""

    async def work(api: Api) -> None:
        body = {"action": "reclaim", "ranks": ranks, "reason": reason}
        await change(api, "/v1/loans", body, follow=wait, wait_s=wait_timeout, output=output)

    perform(context, work)


def notice(
    context: typer.Context,
    *,
    rank: Ranks = None,
    host: Annotated[str, typer.Option(help="Or every rank of this host.")] = "",
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds until the hardware goes.")],
    reason: NeededReason,
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Say that hardware will be gone by a deadline: what can be drained until then is (asks first)."""

    async def work(api: Api) -> None:
        if bool(rank) is bool(host):
            raise UsageError("name --rank or --host, and not both")
        about: dict[str, Any] = {"scope": "host", "host": host} if host else {"scope": "ranks", "ranks": rank}
        confirm(f"Announce that {host or rank} will be gone in {deadline:g} s?", yes=yes)
        await change(api, "/v1/notices", {**about, "deadline_s": deadline, "reason": reason}, output=output)

    perform(context, work)


def pause(
    context: typer.Context,
    *,
    reason: NeededReason,
    losses: Annotated[bool, typer.Option("--losses", help="Still exclude ranks that die.")] = False,
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Change membership only when an operator asks (asks first, unless --losses)."""

    async def work(api: Api) -> None:
        if not losses:
            confirm("Pause recovery? A rank that dies then stops the instance until `resume`.", yes=yes)
        await change(api, "/v1/pause", {"reason": reason, "losses": losses}, output=output)

    perform(context, work)


def resume(context: typer.Context, *, reason: Reason = "", output: OutputFlag = Output.TABLE) -> None:
    """Undo ``pause``."""

    async def work(api: Api) -> None:
        await change(api, "/v1/resume", {"reason": reason}, output=output)

    perform(context, work)


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
        await settle(api, found, follow=True, wait_s=wait_timeout, output=output)

    perform(context, work)


@operations.command("cancel")
def cancel_operation(
    context: typer.Context, operation: str, *, yes: Yes = False, output: OutputFlag = Output.TABLE
) -> None:
    """Stop one and take back what it began (asks first)."""

    async def work(api: Api) -> None:
        confirm(f"Cancel {operation}?", yes=yes)
        found = await api.change("DELETE", f"/v1/operations/{quote(operation, safe='')}")
        await settle(api, found, follow=False, wait_s=WAIT_S, output=output)

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

    async def work(api: Api) -> None:
        await change(
            api,
            f"/v1/operations/{quote(operation, safe='')}:rollback",
            {"reason": reason},
            dry_run=dry_run,
            follow=wait,
            wait_s=wait_timeout,
            ask=f"Undo {operation}?",
            yes=yes,
            output=output,
        )

    perform(context, work)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (
        *(drain, cordon, uncordon, rejoin, replace, scale, rebalance, plan),
        *(lend, reclaim, notice, pause, resume),
    ):
        app.command()(command)
    app.add_typer(operations, name="ops")
