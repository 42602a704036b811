"""Two pictures for the README: balance from nothing, and what a repair moves. Legible on light and dark pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#808890"
OURS, GLOBAL, DEFAULT, BOUND = "#2f9e6e", "#d9822b", "#b04a5a", "#6a7ad0"


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write ``planner_balance.png`` and ``planner_bytes.png`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update(
        {
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    _save(_balance(result), folder / "planner_balance.png")
    _save(_moved(result), folder / "planner_bytes.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=144, transparent=True, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def _label(row: dict[str, Any]) -> str:
    return f"{row['ranks']}×{row['slots']}"


def _balance(result: dict[str, Any]) -> Figure:
    names = list(dict.fromkeys(row["load"] for row in result["placement"]))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = [row for row in result["placement"] if row["load"] == name]
        _points(axis, rows)
        axis.set_title(name, color=INK, fontsize=10)
    axes[0][0].set_ylabel("busiest rank ÷ mean, worst layer (log)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False, bbox_to_anchor=(0.5, -0.1))
    figure.suptitle("Balance from nothing, 58 × 256 experts (1.0 is even)", color=INK, fontsize=11)
    figure.tight_layout()
    return figure


def _points(axis: Axes, rows: list[dict[str, Any]]) -> None:
    where = list(range(len(rows)))
    for key, label, colour, marker, shift in (
        ("eplb_default", "EPLB default", DEFAULT, "v", 0.0),
        ("eplb_global", "EPLB global", GLOBAL, "s", 0.0),
        ("ours", "ours", OURS, "o", 0.0),
    ):
        axis.plot([x + shift for x in where], [row[key]["worst"] for row in rows], marker, color=colour, label=label)
    bound = [max(row["lp_bound"]["worst"], row["whole_bound"]["worst"]) for row in rows]
    axis.plot(where, bound, "_", color=BOUND, markersize=18, markeredgewidth=2, label="lower bound")
    axis.set_yscale("log")
    ticks = [1, 1.25, 1.5, 2, 3, 4]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xticks(where, [_label(row) for row in rows], rotation=45, ha="right")
    axis.grid(visible=True, axis="y", color=INK, alpha=0.25)


def _moved(result: dict[str, Any]) -> Figure:
    name = "recorded" if any(row["load"] == "recorded" for row in result["repair"]) else result["repair"][0]["load"]
    rows = [row for row in result["repair"] if row["load"] == name][::-1]
    size = next(
        row["minimum_bytes"] / row["true_minimum_slots"] for row in result["repair"] if row["true_minimum_slots"]
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.3 * len(rows) + 1.2), sharey=True)
    place = range(len(rows))
    for key, label, colour, shift in (
        ("eplb_global", "EPLB, planned anew", GLOBAL, 0.2),
        ("repair", "ours", OURS, -0.2),
    ):
        gigabytes = [row[key]["slots"] * size / 1e9 for row in rows]
        left.barh([y + shift for y in place], gigabytes, height=0.38, color=colour, label=label)
        for y, value in zip(place, gigabytes, strict=True):
            left.text(
                value * 1.08, y + shift, f"{value:,.0f}" if value >= 10 else f"{value:.1f}", va="center", fontsize=7
            )
    left.set_xscale("log")
    left.set_xlabel("GB loaded after the loss (ours is the true minimum)")
    left.set_yticks(list(place), [f"{_label(row)}, {row['lost']} lost" for row in rows])
    left.margins(x=0.15)
    for key, label, colour, marker in (
        ("eplb_global", "EPLB, planned anew", GLOBAL, "s"),
        ("repair", "ours, no further load", OURS, "o"),
        ("with_budget", "ours, 1 % more slots", BOUND, "D"),
    ):
        right.plot([row[key]["mean"] for row in rows], list(place), marker, color=colour, label=label, markersize=5)
    right.set_xlabel("busiest rank ÷ mean after it (mean of layers)")
    right.grid(visible=True, axis="x", color=INK, alpha=0.25)
    handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0][1:]]
    labels = [*left.get_legend_handles_labels()[1], *right.get_legend_handles_labels()[1][1:]]
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False, bbox_to_anchor=(0.5, -0.07))
    figure.suptitle(f"Losing ranks at 58 × 256 experts, {name} load", color=INK, fontsize=11)
    figure.tight_layout()
    return figure
