"""``eepctl doctor``: what an experienced operator would look at first, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from controlplane.cli.exits import UnreachableError
from controlplane.cli.tables import Column, field, numbers

if TYPE_CHECKING:
    from controlplane.cli.client import Api

COLUMNS = (
    Column("CHECK", field("check"), always=True),
    Column("", lambda row: "ok" if row["ok"] else "NOT OK", always=True),
    Column("FOUND", field("found"), always=True),
    Column("REMEDY", field("remedy")),
)


@dataclass(frozen=True)
class Finding:
    """One check; ``remedy`` only where it is not ok."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


def _finding(check: str, found: str, *, ok: bool, remedy: str) -> Finding:
    return Finding(check, ok, found, "" if ok else remedy)


async def examine(api: Api) -> list[dict[str, Any]]:
    """All findings, the replicas' first."""
    findings, pages = await _replicas(api)
    if pages:
        findings += _agreement(pages) + _state(pages[0])
        findings += _ranks((await api.get("/v1/ranks"))["ranks"])
        findings += _operations((await api.get("/v1/operations"))["operations"])
    return [asdict(finding) for finding in findings]


async def _replicas(api: Api) -> tuple[list[Finding], list[dict[str, Any]]]:
    findings, pages = [], []
    for endpoint in api.endpoints:
        try:
            ready, _ = await api.get_at(endpoint, "/readyz")
            status, page = await api.get_at(endpoint, "/v1/cluster")
        except UnreachableError as error:
            findings.append(Finding("endpoint", ok=False, found=str(error), remedy="start it, or correct --endpoint"))
            continue
        if status != 200:
            findings.append(Finding("token", ok=False, found=str(page.get("detail")), remedy=str(page.get("remedy"))))
            continue
        pages.append(page)
        findings.append(
            _finding(
                "replica",
                f"{endpoint} is {page['replica']}" + ("" if ready == 200 else ", not ready"),
                ok=ready == 200,
                remedy="it has no etcd quorum: check etcd and the network between",
            )
        )
    return findings, pages


def _agreement(pages: list[dict[str, Any]]) -> list[Finding]:
    leaders = {page["leader"]["replica"] if page["leader"] else "nobody" for page in pages}
    epochs = {page["epoch"] for page in pages}
    return [
        _finding(
            "leader",
            ", ".join(sorted(leaders)),
            ok=len(leaders) == 1 and leaders != {"nobody"},
            remedy="wait for the election (seconds); then check etcd from each replica",
        ),
        _finding(
            "epoch",
            numbers(sorted(epochs)),
            ok=len(epochs) == 1 and epochs != {0},
            remedy="a replica is behind (its etcd member is), or no epoch has formed: check the ranks",
        ),
    ]


def _state(page: dict[str, Any]) -> list[Finding]:
    return [
        _finding(
            "coverage",
            f"{page['missing']} experts without a copy",
            ok=not page["missing"],
            remedy="bring back a rank or a checkpoint that holds them: GET /v1/cluster names them",
        ),
        _finding(
            "headroom",
            f"can lose {page['headroom']} more ranks",
            ok=page["headroom"] > 0,
            remedy="the next loss needs weights fetched: add ranks or slots, or rebalance",
        ),
        _finding(
            "recovery", page["paused"] or "automatic", ok=not page["paused"], remedy="eepctl resume, when it is time"
        ),
    ]


def _ranks(rows: list[dict[str, Any]]) -> list[Finding]:
    bad = [row for row in rows if row["state"] in ("suspect", "fenced")]
    slow = [row for row in rows if row["speed"] < 1]
    return [
        _finding(
            "ranks",
            "; ".join(f"{row['rank']} {row['state']}: {row['reason']}" for row in bad) or f"{len(rows)} known",
            ok=not bad,
            remedy="look at the agent's log on the host; eepctl rejoin lets a held one in again",
        ),
        _finding(
            "speed",
            "; ".join(f"{row['rank']} at {row['speed']:.2f}" for row in slow) or "all at nominal speed",
            ok=not slow,
            remedy="look for heat, clocks and a noisy neighbour; eepctl drain if it stays",
        ),
    ]


def _operations(rows: list[dict[str, Any]]) -> list[Finding]:
    failed = [row for row in rows if row["state"] == "failed"]
    return [
        _finding(
            "operations",
            "; ".join(f"{row['kind']} {row['id'][:8]}: {row['message']}" for row in failed) or "none failed",
            ok=not failed,
            remedy="eepctl ops show ID tells the phases",
        )
    ]
