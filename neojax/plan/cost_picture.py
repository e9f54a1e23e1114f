"""`neojax plan --tokens --picture`: the days that a run takes against the chips that it takes them on, both
logarithmic: a line for every kind of chip, a bar for every interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neojax.plan.svg import FAINT, GRID, INK, Drawing

INKS = ("#2f6fb2", "#d1495b", "#2a9d8f", "#e07b1f", "#7b4fa3", "#b5892a", "#4a5568", "#c0399f")
LEFT, TOP, WIDE, HIGH = 80.0, 80.0, 640.0, 420.0


def draw_costs(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The picture of the rows of `neojax.plan.cost.sweep` on which the step fits, as SVG text."""
    page = Drawing(960)
    page.text(24, 34, f"{title}: what a run costs", 19, bold=True)
    done = sorted((row for row in rows if row.get("fits")), key=lambda row: row["chips"])
    if not done:
        page.text(24, 60, "the step fits on none of the machines", 12, FAINT)
        return str(page)
    page.text(24, 54, f"days for {done[0]['tokens']:.4g} tokens, both logarithmic", 12, FAINT)
    across = _scale([row["chips"] for row in done], 2)
    up = _scale([value for row in done for value in (row["days_low"], row["days_high"])], 10)

    def x(chips: float) -> float:
        return LEFT + WIDE * _place(chips, across)

    def y(days: float) -> float:
        return TOP + HIGH * (1 - _place(days, up))

    for power in range(round(math.log2(across[0])), round(math.log2(across[1])) + 1):
        page.line([(x(2.0**power), TOP), (x(2.0**power), TOP + HIGH)], GRID)
        page.text(x(2.0**power), TOP + HIGH + 18, str(2**power), 11, FAINT, anchor="middle")
    for power in range(round(math.log10(up[0])), round(math.log10(up[1])) + 1):
        page.line([(LEFT, y(10.0**power)), (LEFT + WIDE, y(10.0**power))], GRID)
        page.text(LEFT - 8, y(10.0**power) + 4, f"{10.0**power:g}", 11, FAINT, anchor="end")
    page.text(LEFT + WIDE / 2, TOP + HIGH + 38, "chips", 12, anchor="middle")
    page.text(LEFT - 8, TOP - 10, "days", 12, anchor="end")
    chips: dict[str, list[Mapping[str, Any]]] = {}
    for row in done:
        chips.setdefault(row["topology"].rpartition(":")[0], []).append(row)
    for i, (chip, own) in enumerate(chips.items()):
        ink = INKS[i % len(INKS)]
        page.line([(x(row["chips"]), y(row["days"])) for row in own], ink)
        for row in own:
            page.line([(x(row["chips"]), y(row["days_low"])), (x(row["chips"]), y(row["days_high"]))], ink)
            page.rect(x(row["chips"]) - 4, y(row["days"]) - 4, 8, 8, ink)
        page.rect(LEFT + WIDE + 30, TOP + 22 * i, 12, 12, ink)
        page.text(LEFT + WIDE + 50, TOP + 22 * i + 11, chip, 12, INK)
    return str(page)


def _scale(values: Sequence[float], base: float) -> tuple[float, float]:
    """The powers of `base` below and above all values."""
    low = math.floor(math.log(min(values), base) + 1e-9)
    high = math.ceil(math.log(max(values), base) - 1e-9)
    return (base**low, base**high) if high > low else (base ** (low - 1), base ** (low + 1))


def _place(value: float, ends: tuple[float, float]) -> float:
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])
