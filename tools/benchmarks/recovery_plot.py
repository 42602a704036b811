"""The picture of a loss: output tokens per second through SIGKILL, recovery and return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LABELS = {"intact": "one killed: coverage intact", "repaired": "two killed: experts loaded"}
_COLOURS = {"intact": "#1b7f5c", "repaired": "#c2571a"}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw what ``tools/bench recovery`` found, one line for each kind of loss, aligned at the fault."""
    import matplotlib as mpl  # noqa: PLC0415  heavy, and only for this

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(9, 4), dpi=140)
    for kind, colour in _COLOURS.items():
        run = result.get(kind)
        if not run or "curve" not in run:
            continue
        moments, rates = zip(*run["curve"], strict=True)
        lost, back = run["curve_lost_s"], run["curve_returned_s"] - run["curve_lost_s"]
        axes.step([at - lost for at in moments], rates, where="mid", label=_LABELS[kind], color=colour)
        axes.axvline(back, color=colour, linestyle=":", linewidth=1)
        axes.annotate("back", (back, 0.02), xycoords=("data", "axes fraction"), color=colour, fontsize=8)
    axes.axvline(0.0, color="#888888", linestyle="--", linewidth=1)
    axes.annotate("SIGKILL", (0.0, 0.02), xycoords=("data", "axes fraction"), color="#666666")
    axes.set_xlabel("seconds from the fault")
    axes.set_ylabel("output tokens per second")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{result['ranks']} ranks; what was killed returns by itself")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
