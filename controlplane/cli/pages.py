"""What each table shows."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.text import Text

from controlplane.cli.tables import Column, ago, duration, field, numbers, size, table


def _share(row: dict[str, Any]) -> str:
    return "" if row["speed"] == 1 else f"{row['speed']:.2f}"


RANKS = (
    Column("RANK", lambda row: str(row["rank"]), always=True, right=True),
    Column("STATE", field("state"), always=True),
    Column("HOST", field("host")),
    Column("RACK", field("rack")),
    Column("EPOCH", field("epoch"), right=True),
    Column("EXPERTS", field("experts"), right=True),
    Column("SPEED", _share, right=True),
    Column("WAITED", lambda row: f"{row['waited']:.0%}" if row["waited"] else "", right=True),
    Column("SINCE", lambda row: ago(row["since"]), right=True),
    Column("LOSSES", field("losses"), right=True),
    Column("RETRY AT", field("retry_at")),
    Column("CORDONED", field("cordoned")),
    Column("DRAINING", field("draining")),
    Column("LENT TO", field("lent_to")),
    Column("REASON", field("reason")),
    Column("SLOTS", field("slots"), wide=True, right=True),
    Column("READY", lambda row: "yes" if row["ready"] else "no", wide=True),
    Column("INCARNATION", field("incarnation"), wide=True, right=True),
    Column("SERVES AT", field("serve_url"), wide=True),
)

OPERATIONS = (
    Column("ID", field("id"), always=True),
    Column("KIND", field("kind"), always=True),
    Column("STATE", field("state"), always=True),
    Column("RANKS", lambda row: numbers(row["ranks"])),
    Column("HOST", field("host")),
    Column("WITH", lambda row: " ".join(f"{name}={value}" for name, value in row["parameters"].items())),
    Column("WHO", field("who"), always=True),
    Column("AGE", lambda row: ago(row["created_at"]), always=True, right=True),
    Column("EPOCH", field("epoch"), right=True),
    Column("MAY BE SWITCHED OFF", lambda row: numbers(row["safe_to_terminate"])),
    Column("REASON", field("reason"), always=True),
    Column("MESSAGE", field("message")),
    Column("CANCELLED BY", field("cancel_requested"), wide=True),
    Column("TRACE", field("trace_id"), wide=True),
)

EPOCHS = (
    Column("EPOCH", lambda row: str(row["epoch"]), always=True, right=True),
    Column("RANKS", lambda row: str(len(row["members"])), always=True, right=True),
    Column("MEMBERS", lambda row: numbers(row["members"]), always=True),
    Column("CUT", field("cut"), always=True),
    Column("AGE", lambda row: ago(row["decided_at"]), always=True, right=True),
    Column("BY", field("replica"), always=True),
    Column("MISSING", field("missing"), right=True),
    Column("REASON", field("reason"), always=True),
    Column("CAUSE", field("cause"), wide=True),
    Column("RECOVERY", field("recovery"), wide=True),
    Column("FENCE", field("fence"), wide=True, right=True),
    Column("PLACEMENT", lambda row: row["placement"][:12], wide=True),
)

RECOVERIES = (
    Column("ID", field("id"), always=True),
    Column("EPOCH", lambda row: f"{row['epoch_before']} → {row['epoch']}", always=True, right=True),
    Column("PLANNED", lambda row: "no" if row["unplanned"] else "yes", always=True),
    Column("TOOK", lambda row: duration(row["seconds"]), always=True, right=True),
    Column("AGE", lambda row: ago(row["started_at"]), always=True, right=True),
    Column("LEFT", lambda row: numbers(row["left"])),
    Column("JOINED", lambda row: numbers(row["joined"])),
    Column("BLAMED", lambda row: " ".join(f"{one['rank']}:{one['evidence']}" for one in row["blamed"])),
    Column("LOADED", lambda row: size(sum(row["bytes_by_tier"].values())) if row["bytes_by_tier"] else ""),
    Column("OUTCOME", lambda row: row["outcome"] or "running", always=True),
    Column("REASON", field("reason"), always=True),
    Column("TRACE", field("trace_id"), wide=True),
)

PHASES = (
    Column("PHASE", field("name"), always=True),
    Column("TOOK", lambda row: duration(row["seconds"]) if row["finished_at"] else "…", always=True, right=True),
    Column("BEGAN", field("started_at"), always=True),
    Column("DETAIL", field("detail")),
)


def summary(cluster: dict[str, Any]) -> Text:
    """The cluster in one line, and a second one for what needs attention."""
    leader = cluster["leader"]
    total = sum(cluster["states"].values())
    line = Text.assemble(
        (cluster["instance"], "bold"),
        f" · epoch {cluster['epoch']}",
        f" · leader {leader['replica']} (fence {leader['fence']})" if leader else (" · no leader", "bold red"),
        f" · {len(cluster['members'])}/{total} ranks",
        f" · can lose {cluster['headroom']} more" if cluster["epoch"] else "",
    )
    for text, style in _alerts(cluster):
        line.append(f"\n{text}", style=style)
    return line


def _alerts(cluster: dict[str, Any]) -> list[tuple[str, str]]:
    alerts = []
    if not cluster["etcd_connected"]:
        alerts.append(("etcd does not answer: this is what was last known, and nothing can be changed", "bold red"))
    if cluster["missing"]:
        alerts.append((f"{cluster['missing']} experts have no copy on an active rank: nothing is sampled", "bold red"))
    if cluster["paused"]:
        alerts.append((f"paused by {cluster['paused']}", "yellow"))
    if preparing := cluster["preparing"]:
        waiting = numbers(preparing["waiting_for"])
        waits = f", waits for {waiting}" if waiting else ""
        alerts.append((f"preparing epoch {preparing['epoch']}: {preparing['reason']}{waits}", "cyan"))
    return alerts


def status(cluster: dict[str, Any], ranks: list[dict[str, Any]], *, wide: bool) -> Group:
    """The operator's first page."""
    return Group(summary(cluster), table(RANKS, ranks, wide=wide))


def forecast(predicted: dict[str, Any]) -> Text:
    """A prediction in words."""
    if not predicted["allowed"]:
        return Text(f"would be refused: {predicted['refusal']}", style="bold yellow")
    lines = [
        f"epoch {predicted['epoch']} → ranks {numbers(predicted['members'])} in {predicted['epochs']} flips",
        f"  pause      {predicted['pause_ms']:.0f} ms, after {duration(predicted['prepare_s'])} in the background",
        f"  weights    {predicted['slots_to_load']} slots, {size(predicted['bytes_to_load'])}",
        f"  headroom   {predicted['headroom_before']} → {predicted['headroom_after']} ranks",
    ]
    if predicted["balance_before"] or predicted["balance_after"]:
        lines.append(
            f"  balance    {predicted['balance_before']:.3f} → {predicted['balance_after']:.3f} (busiest ÷ mean)"
        )
    if predicted["missing_experts"]:
        lines.append(f"  MISSING    {len(predicted['missing_experts'])} experts would have no copy")
    return Text("\n".join(lines))
