"""The targets, each with what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


FEASIBLE = 1.03
REPAIRED = 1.05
BOUNDS = ("lp_bound", "whole_bound", "bound_with_budget")


@dataclass(frozen=True)
class Line:
    """One target.

    Attributes:
        target: what was asked.
        met: whether it was reached in every case.
        measured: the furthest case.
        infeasible: cases in which nothing can reach it, each with the best that is possible.
        missed: cases in which it was not reached.
    """

    target: str
    met: bool
    measured: str
    infeasible: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge(result: dict[str, Any]) -> list[Line]:
    """Every target of the planner, in order."""
    return [
        *_balance(result["placement"]),
        *_repair(result["repair"]),
        *_time(result["time"]),
        *_rest(result),
    ]


def _name(row: dict[str, Any]) -> str:
    lost = f", {row['lost']} lost" if "lost" in row else ""
    return f"{row['ranks']}×{row['slots']} {row['load']}{lost}"


def _worst(rows: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> tuple[float, str]:
    row = max(rows, key=figure)
    return float(figure(row)), _name(row)


def _line(target: str, rows: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float], limit: float) -> Line:
    value, where = _worst(rows, figure)
    return Line(target, value <= limit, f"{value:.4f} at most ({where}); {len(rows)} cases")


def _best_possible(row: dict[str, Any], key: str) -> str:
    bound, target = row["whole_bound"][key], row["lp_bound"][key]
    return (
        f"{_name(row)}: infeasible at {FEASIBLE * target:.3f}, best possible {bound:.4f}, ours {row['ours'][key]:.4f}"
    )


def _best_bound(row: dict[str, Any], key: str) -> float:
    return float(max(row[bound][key] for bound in BOUNDS if bound in row))


def _ours_over(other: str, key: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: float(row["ours"][key] / row[other][key])


def _repaired_over_bound(key: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: float(row["with_budget"][key] / _best_bound(row, key))


def _balance(rows: list[dict[str, Any]]) -> list[Line]:
    lines = [
        _line(
            f"balance ÷ EPLB global, {key} layer: ≤ 1.01",
            rows,
            _ours_over("eplb_global", key),
            1.01,
        )
        for key in ("mean", "worst")
    ]
    lines += [
        _line(
            f"balance ÷ EPLB default, {key} layer: ≤ 1.00",
            rows,
            _ours_over("eplb_default", key),
            1.0,
        )
        for key in ("mean", "worst")
    ]
    # Where whole copies cannot come within 3 % of the LP's bound, no planner can: there their own bound counts.
    for key in ("mean", "worst"):
        out = [row for row in rows if row["whole_bound"][key] > FEASIBLE * row["lp_bound"][key]]
        feasible = [row for row in rows if row not in out]
        lines.append(
            _line(
                f"balance ÷ LP bound where whole copies can reach it, {key} layer: ≤ 1.03",
                feasible,
                _ours_over("lp_bound", key),
                1.03,
            )
        )
        if out:
            lines.append(
                _line(
                    f"balance ÷ bound of whole copies where the LP's is infeasible, {key} layer: ≤ 1.03",
                    out,
                    _ours_over("whole_bound", key),
                    1.03,
                )
            )
            lines[-1] = replace(lines[-1], infeasible=tuple(_best_possible(row, key) for row in out))
    lines.append(
        _line("split ÷ LP split on the same placement: ≤ 1.005", rows, lambda row: row["split_over_lp"], 1.005)
    )
    return lines


def _repair(rows: list[dict[str, Any]]) -> list[Line]:
    exact = sum(row["repair"]["slots"] == row["true_minimum_slots"] for row in rows)
    within = sum(
        row["with_budget"]["slots"] <= row["true_minimum_slots"] + row["with_budget"]["budget"] for row in rows
    )
    lines = [
        Line("bytes of a repair = true minimum", exact == len(rows), f"{exact} of {len(rows)} cases"),
        Line("slots written stay within minimum + 1 %", within == len(rows), f"{within} of {len(rows)} cases"),
    ]
    lines += [_budgeted(rows, key) for key in ("mean", "worst")]
    saved = min(row["eplb_global"]["slots"] / max(row["repair"]["slots"], 1) for row in rows)
    most = max(row["eplb_global"]["slots"] / max(row["repair"]["slots"], 1) for row in rows)
    lines.append(Line("fewer slots written than EPLB", saved > 1, f"{saved:.1f}× to {most:.0f}× fewer"))
    return lines


def _budgeted(rows: list[dict[str, Any]], key: str) -> Line:
    """Reached; or not, though some bound says that no repair can; or neither."""
    over = [row for row in rows if row["with_budget"][key] > REPAIRED * row["lp_bound"][key]]
    proven = [row for row in over if _best_bound(row, key) > REPAIRED * row["lp_bound"][key]]
    missed = [row for row in over if row not in proven]
    beside = ""
    if proven:
        value, where = _worst(proven, _repaired_over_bound(key))
        beside = f" (ours at most {value:.3f} × what is proven: {where})"
    return Line(
        f"balance after repair with 1 % of the slots, {key} layer: ≤ 1.05 × LP bound wherever that is feasible",
        not missed,
        f"{len(rows) - len(over)} of {len(rows)} cases reach it; no repair can in {len(proven)}{beside}; "
        f"{len(missed)} neither",
        infeasible=tuple(_unreachable(row, key) for row in proven),
        missed=tuple(f"{_name(row)}: {row['with_budget'][key] / row['lp_bound'][key]:.3f}" for row in missed),
    )


def _unreachable(row: dict[str, Any], key: str) -> str:
    target, ours = REPAIRED * row["lp_bound"][key], row["with_budget"][key]
    return (
        f"{_name(row)}: infeasible at {target:.3f}, proven to be at least {_best_bound(row, key):.4f}, ours {ours:.4f} "
        f"({_repaired_over_bound(key)(row):.3f} ×)"
    )


def _time(rows: list[dict[str, Any]]) -> list[Line]:
    small = [row for row in rows if row["ranks"] == 64]
    lines = [
        _line("repair on 64 ranks, ms: ≤ 10", small, lambda row: row["repair_ms"], 10),
        _line("full plan on 64 ranks, ms: ≤ 50", small, lambda row: row["plan_ms"], 50),
        _line("repair of a host of 8 on 64 ranks, ms: ≤ 10", small, lambda row: row["repair_host_ms"], 10),
        _line("contingencies of 64 single losses, ms: ≤ 500", small, lambda row: row["contingencies_ms"], 500),
    ]
    large = [row for row in rows if row["ranks"] == 320]
    if large:
        lines.append(_line("full plan on 320 ranks, ms: ≤ 100", large, lambda row: row["plan_ms"], 100))
        lines.append(_line("repair on 320 ranks, ms: ≤ 100", large, lambda row: row["repair_ms"], 100))
    return lines


def _rest(result: dict[str, Any]) -> list[Line]:
    ratio = max(row["ratio"] for row in result["sources"])
    lines = [
        Line("finish of the sources ÷ LP bound: ≤ 1.10", ratio <= 1.10, f"{ratio:.4f} at most"),
        Line("the same bytes with 1, 2 and 4 threads", result["deterministic"], str(result["deterministic"])),
    ]
    for day in result["day"]:
        mine = day["ours"]
        beside = f", EPLB {day['eplb_global']['gigabytes']} GB" if "eplb_global" in day else ""
        lines.append(
            Line(
                f"a day with {day['failures']} failures, {day['survivability']} survivability: every invariant holds",
                not mine["violations"],
                f"{mine['gigabytes']} GB moved{beside}; "
                f"balance {mine['balance_mean']} (worst tick {mine['balance_worst']})",
            )
        )
    return lines
