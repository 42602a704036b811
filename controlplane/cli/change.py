"""Commands that change the instance: each is one operation; ``--dry-run`` predicts it, ``--wait`` follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from controlplane.cli.exits import UsageError
from controlplane.cli.session import (
    WAIT_S,
    Deadline,
    DryRun,
    Epoch,
    How,
    OutputFlag,
    Reason,
    Wait,
    WaitFor,
    Yes,
    change,
    perform,
    submit,
)
from controlplane.cli.tables import Output

if TYPE_CHECKING:
    from controlplane.cli.client import Api

RankArgument = Annotated[int, typer.Argument(min=0, help="The rank.")]
RanksArgument = Annotated[list[int], typer.Argument(help="The ranks.")]
NeededReason = Annotated[str, typer.Option("--reason", "-r", help="Why; shown with who and when. Required.")]
Ranks = Annotated[list[int] | None, typer.Option("--rank", help="A rank; repeat.")]


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
    how = How(dry_run=dry_run, follow=wait, wait_s=wait_timeout, epoch=epoch, yes=yes, output=output)
    said = {"reason": reason, "deadline_s": deadline}

    async def work(api: Api) -> None:
        if (rank is None) is (not host):
            raise UsageError("name a rank, or --host, and not both")
        if host:
            await change(api, f"/v1/hosts/{quote(host, safe='')}:drain", said, how.asking(f"Drain all of {host}?"))
        else:
            await change(api, f"/v1/ranks/{rank}:drain", said, how)

    perform(context, work)


def cordon(
    context: typer.Context, rank: RankArgument, *, reason: NeededReason, output: OutputFlag = Output.TABLE
) -> None:
    """Let no epoch add the rank; an active one serves on."""
    submit(context, f"/v1/ranks/{rank}:cordon", {"reason": reason}, How(output=output))


def uncordon(
    context: typer.Context, rank: RankArgument, *, reason: Reason = "", output: OutputFlag = Output.TABLE
) -> None:
    """Undo a cordon; the flap limit's hold too."""
    submit(context, f"/v1/ranks/{rank}:uncordon", {"reason": reason}, How(output=output))


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
    how = How(dry_run=dry_run, follow=wait, wait_s=wait_timeout, output=output)
    submit(context, f"/v1/ranks/{rank}:rejoin", {"reason": reason}, how)


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
    how = How(dry_run=dry_run, follow=wait, wait_s=wait_timeout, yes=yes, output=output)
    said = {"by": by, "reason": reason}
    submit(context, f"/v1/ranks/{rank}:replace", said, how.asking(f"Replace rank {rank} by rank {by}?"))


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
    how = How(dry_run=dry_run, follow=wait, wait_s=wait_timeout, epoch=epoch, yes=yes, output=output)

    async def work(api: Api) -> None:
        now = len((await api.get("/v1/cluster"))["members"])
        ask = f"Scale from {now} down to {target} ranks?" if target < now else ""
        await change(api, "/v1/scale", {"target": target, "ranks": rank or [], "reason": reason}, how.asking(ask))

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
    how = How(dry_run=dry_run, follow=wait, wait_s=wait_timeout, output=output)
    submit(context, "/v1/rebalance", {"max_bytes": max_bytes, "reason": reason}, how)


def plan(
    context: typer.Context,
    *,
    target: Annotated[int, typer.Option("--target", min=0, help="Scale to so many ranks.")] = 0,
    drained: Annotated[list[int] | None, typer.Option("--drain", help="Without this rank; repeat.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run/--apply", help="Predict (default), or perform.")] = True,
    reason: Reason = "planned with eepctl plan",
    yes: Yes = False,
    output: OutputFlag = Output.TABLE,
) -> None:
    """What a change would cost: a rebalance, or --target or --drain. Performs it only with --apply."""
    how = How(dry_run=dry_run, yes=yes, output=output, ask="Perform this?")

    async def work(api: Api) -> None:
        if target and drained:
            raise UsageError("--target and --drain are two plans: choose one")
        said: dict[str, object] = {"reason": reason}
        path = "/v1/rebalance"
        if target:
            path, said = "/v1/scale", {**said, "target": target}
        elif drained and len(drained) == 1:
            path = f"/v1/ranks/{drained[0]}:drain"
        elif drained:
            now = len((await api.get("/v1/cluster"))["members"])
            path, said = "/v1/scale", {**said, "target": max(now - len(drained), 1), "ranks": drained}
        await change(api, path, said, how)

    perform(context, work)


def lend(
    context: typer.Context,
    ranks: RanksArgument,
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
    how = How(dry_run=dry_run, follow=wait, wait_s=wait_timeout, yes=yes, output=output)
    said = {"action": "lend", "ranks": ranks, "to": to, "reason": reason}
    submit(context, "/v1/loans", said, how.asking(f"Lend {len(ranks)} ranks to {to}?"))


def reclaim(
    context: typer.Context,
    ranks: RanksArgument,
    *,
    reason: Reason = "",
    wait: Wait = False,
    wait_timeout: WaitFor = WAIT_S,
    output: OutputFlag = Output.TABLE,
) -> None:
    """Take lent ranks back."""
    said = {"action": "reclaim", "ranks": ranks, "reason": reason}
    submit(context, "/v1/loans", said, How(follow=wait, wait_s=wait_timeout, output=output))


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
    how = How(yes=yes, output=output, ask=f"Announce that {host or rank} will be gone in {deadline:g} s?")

    async def work(api: Api) -> None:
        if bool(rank) is bool(host):
            raise UsageError("name --rank or --host, and not both")
        about: dict[str, Any] = {"scope": "host", "host": host} if host else {"scope": "ranks", "ranks": rank}
        await change(api, "/v1/notices", {**about, "deadline_s": deadline, "reason": reason}, how)

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
    ask = "" if losses else "Pause recovery? A rank that dies then stops the instance until `resume`."
    submit(context, "/v1/pause", {"reason": reason, "losses": losses}, How(yes=yes, output=output, ask=ask))


def resume(context: typer.Context, *, reason: Reason = "", output: OutputFlag = Output.TABLE) -> None:
    """Undo ``pause``."""
    submit(context, "/v1/resume", {"reason": reason}, How(output=output))


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (
        *(drain, cordon, uncordon, rejoin, replace, scale, rebalance, plan),
        *(lend, reclaim, notice, pause, resume),
    ):
        app.command()(command)
