"""``--wait``: follow one operation to its end, with a bar that moves as ranks acknowledge."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from controlplane.cli.exits import DeadlineError, FailedError, UnreachableError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from controlplane.cli.client import Api

POLL_S = 0.25
FINAL = frozenset({"done", "refused", "failed", "cancelled"})


async def wait(api: Api, operation: dict[str, Any], *, deadline_s: float, console: Console) -> dict[str, Any]:
    """The operation once it has ended, done.

    Raises:
        FailedError: it ended otherwise.
        DeadlineError: it has not ended within ``deadline_s``.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        shown = bar.add_task(operation["kind"], total=None, detail=operation["state"])
        try:
            async with asyncio.timeout(deadline_s):
                ended = await _followed(api, operation, bar, shown)
        except TimeoutError as error:
            raise DeadlineError(
                f"operation {operation['id']} has not ended after {deadline_s:g} s; it goes on: "
                f"eepctl ops show {operation['id']}"
            ) from error
    if ended["state"] != "done":
        raise FailedError(f"operation {ended['id']} ended {ended['state']}: {ended['message'] or 'no reason given'}")
    return ended


async def _followed(api: Api, operation: dict[str, Any], bar: Progress, shown: TaskID) -> dict[str, Any]:
    said = ""
    while operation["state"] not in FINAL:
        await asyncio.sleep(POLL_S)
        try:
            operation = await api.get(f"/v1/operations/{operation['id']}")
            preparing = (await api.get("/v1/cluster"))["preparing"]
        except UnreachableError as error:  # a leader change, or etcd is away: the operation outlives both
            bar.update(shown, detail=str(error).splitlines()[0])
            continue
        detail = operation["message"] or (
            operation["phases"][-1]["name"] if operation["phases"] else operation["state"]
        )
        if detail != said and not bar.console.is_terminal:
            bar.console.print(f"{operation['kind']} {operation['state']}: {detail}")
        said = detail
        if preparing:
            done, waiting = len(preparing["prepared"]), len(preparing["waiting_for"])
            bar.update(shown, completed=done, total=done + waiting, detail=detail)
        else:
            bar.update(shown, detail=detail)
    return operation
