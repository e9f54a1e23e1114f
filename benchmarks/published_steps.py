"""The model of a step's time against published steps.

    python benchmarks/published_steps.py [--fit]

Every row of `published_rows.py` as a configuration of neojax on the machine that it was trained on: its step
is traced, counted, and its time predicted from the counts, the table of chips and the constants of
`neojax.plan.estimate` alone. With --fit the constants are fitted anew, on one half of the rows, and their
spread is that of fits to rows drawn from these with repetition. The halves are told apart within each chip by
the rows'
numbers: all slices and sizes of one published series are on one side. Writes results/published_steps.json and
.svg.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from published_rows import KEPT, ROWS, Row
from side_by_side import RESULTS, save

NOT_THERE = {
    61: "its H100 are held at 500 W and have memory of 2.4e12 bytes a second: not the chip of the table",
    64: "in a loop that copied what it kept, by an option that is no longer set; not measured unrolled",
    65: "as 64, and by the whole matrix of scores, of which no kernel's share is known",
}
FIXED = ("kernels gpu",)  # A100's and H100's rows do not tell it from products
DRAWS = 60


def measured(row: Row) -> dict[str, Any]:
    """The row, and what the model says of its parts by nominal figures alone, in seconds."""
    from neojax.layout.chips import CHIPS
    from neojax.plan import estimate
    from neojax.plan.count import count
    from neojax.plan.machine import machine, paths
    from neojax.plan.trace import dcn_of, trace

    config, on = row.config(), machine(row.machine)
    work = count(trace(config, on), tiled=bool(on.chip.axes))
    chip = CHIPS[on.chip.name]
    taken = paths(on, dict(work.sizes), dcn_of(config))
    times = [estimate.seconds(one, on, taken) for one in work.transfers]
    peak, bandwidth = chip.flops / chip.cores, chip.bandwidth / chip.cores
    return {
        "products": [
            (p.times * p.flops / peak, p.times * p.bytes / bandwidth) for p in work.products if not p.kernel
        ],
        "kernels": sum(p.times * p.flops for p in work.products if p.kernel) / peak,
        "traffic": work.traffic / bandwidth,
        "links": sum(near for near, _ in times),
        "network": sum(far for _, far in times),
        "chip": estimate.LIKE.get(chip.name, chip.name),
        "platform": chip.platform,
        "seconds": row.seconds,
        "memory": work.memory.total,
    }


def predicted(parts: dict[str, Any], constants: dict[str, float]) -> float:
    """Seconds of a step, as `neojax.plan.estimate` has them where links are hidden."""
    chip, kind = parts["chip"], parts["platform"]
    products = np.array(parts["products"])
    compute = np.maximum(products[:, 0] / constants[f"products {chip}"], products[:, 1]).sum()
    compute += parts["kernels"] / constants[f"kernels {kind}"] + constants["traffic"] * parts["traffic"]
    return max(compute, parts["links"]) + constants[f"network {kind}"] * parts["network"]


def fitted(rows: Sequence[dict[str, Any]], start: dict[str, float]) -> dict[str, float]:
    """The constants with which most of `rows` are met: the least sum of absolute logarithms, smoothed near
    0."""
    from scipy.optimize import least_squares

    names = [name for name in start if name not in FIXED]

    def misses(logs: Any) -> list[float]:
        own = start | dict(zip(names, np.exp(logs)))
        return [math.log(predicted(row, own) / row["seconds"]) for row in rows]

    top = [math.log(1.0 if name.split()[0] in ("products", "kernels") else 10) for name in names]
    first = [min(math.log(start[name]), t - 1e-3) for name, t in zip(names, top)]
    found = least_squares(misses, first, bounds=([-5.0] * len(names), top), loss="soft_l1", f_scale=0.1)
    return start | dict(zip(names, map(float, np.exp(found.x))))


def halves(rows: Sequence[Row], chip: Callable[[Row], str]) -> dict[str, bool]:
    """By a row's name, whether it is one that constants are fitted to."""
    numbers: dict[str, list[int]] = {}
    for row in rows:
        numbers.setdefault(chip(row), []).append(row.number)
    return {row.name: sorted(set(numbers[chip(row)])).index(row.number) % 2 == 0 for row in rows}


def spread(
    rows: Sequence[dict[str, Any]], start: dict[str, float]
) -> dict[str, tuple[float | None, float | None]]:
    """Where nine in ten of `DRAWS` fits to rows drawn with repetition put each constant, if it is fitted."""
    random = np.random.default_rng(0)
    chips = {row["chip"] for row in rows}
    found = []
    while len(found) < DRAWS:
        drawn = [rows[i] for i in random.integers(len(rows), size=len(rows))]
        if {row["chip"] for row in drawn} == chips:
            found.append(fitted(drawn, start))
    return {
        name: (None, None)
        if name in FIXED
        else tuple(float(q) for q in np.quantile([one[name] for one in found], (0.05, 0.95)))
        for name in start
    }


def summary(ratios: Sequence[float]) -> dict[str, float]:
    """How far predictions over published times lie from 1."""
    miss = np.abs(np.array(ratios) - 1)
    return {
        "rows": len(miss),
        "median": float(np.median(miss)),
        "nine in ten": float(np.quantile(miss, 0.9)),
        "within 25 %": float(np.mean(miss <= 0.25)),
        "largest": float(miss.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants anew")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from neojax.models.compute import REMAT_POLICIES
    from neojax.plan.estimate import CONSTANTS

    for name, kept in KEPT.items():
        REMAT_POLICIES[name] = jax.checkpoint_policies.save_only_these_names(*kept)
    parts = {row.name: measured(row) for row in ROWS}
    is_fitted = halves(ROWS, lambda row: parts[row.name]["chip"])
    usable = [row.name for row in ROWS if row.number not in NOT_THERE]
    constants = {name: one.value for name, one in CONSTANTS.items()}
    limits = {name: (one.low, one.high) for name, one in CONSTANTS.items()}
    if args.fit:
        own = [parts[name] for name in usable if is_fitted[name]]
        constants = fitted(own, constants)
        limits = spread(own, constants)
    for name, value in constants.items():
        low, high = limits[name]
        said = "not fitted" if low is None else f"nine in ten fits {low:.3f} to {high:.3f}"
        print(f"{name:16} {value:.3f}, {said}")
    rows = []
    for row in ROWS:
        guess = predicted(parts[row.name], constants)
        half = "left out" if row.number in NOT_THERE else "fitted" if is_fitted[row.name] else "tested"
        rows.append(
            {
                "number": row.number,
                "group": row.group,
                "platform": parts[row.name]["platform"],
                "row": row.name,
                "published": row.seconds,
                "predicted": guess,
                "ratio": guess / row.seconds,
                "half": half,
                "remark": NOT_THERE.get(row.number, row.remark),
            }
        )
        print(
            f"{row.group:8} {row.name:36} {half:8} published {row.seconds:8.3f} s, predicted {guess:8.3f}, "
            f"{guess / row.seconds - 1:+6.1%}  {rows[-1]['remark']}"
        )
    found = {
        half: summary([one["ratio"] for one in rows if one["half"] == half]) for half in ("fitted", "tested")
    }
    tested = [one for one in rows if one["half"] == "tested"]
    found["published over predicted, eight in ten of the tested"] = {
        kind: [float(q) for q in np.quantile([1 / one["ratio"] for one in own], (0.1, 0.9))]
        for kind in ("all", "tpu", "gpu")
        if (own := [one for one in tested if kind in ("all", one["platform"])])
    }
    for half, numbers in found.items():
        print(half, numbers)
    result = {
        "constants": {name: {"value": v, "spread": limits[name]} for name, v in constants.items()},
        "summary": found,
        "rows": rows,
    }
    save("published_steps", result)
    (RESULTS / "published_steps.svg").write_text(picture(rows))


def picture(rows: Sequence[dict[str, Any]]) -> str:
    """Predicted against published seconds, both logarithmic, as SVG: a line where they are equal, and those
    of 25 % more and less."""
    low, high, size, edge = math.log10(0.03), math.log10(200), 620, 70
    colours = {"mosaic": "#1b6ca8", "recipes": "#c0392b", "maxtext": "#2e8b57", "toolbox": "#b8860b",
               "nanogpt": "#7d3c98", "llm.c": "#d35400", "titan": "#7f8c8d",
               "neojax": "#000000"}  # fmt: skip

    def at(seconds: float) -> float:
        return (math.log10(seconds) - low) / (high - low) * (size - 2 * edge) + edge

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{size}" height="{size}" fill="white"/>',
    ]
    for factor, dash in ((1.0, ""), (0.75, "4 4"), (1.25, "4 4")):
        ends = [(0.04, 0.04 * factor), (150, 150 * factor)]
        (x1, y1), (x2, y2) = ((at(x), size - at(y)) for x, y in ends)
        lines.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#999" '
            f'stroke-dasharray="{dash}"/>'
        )
    for tick in (0.1, 1, 10, 100):
        x, y = at(tick), size - at(tick)
        lines.append(f'<line x1="{x:.1f}" y1="{edge}" x2="{x:.1f}" y2="{size - edge}" stroke="#eee"/>')
        lines.append(f'<line x1="{edge}" y1="{y:.1f}" x2="{size - edge}" y2="{y:.1f}" stroke="#eee"/>')
        lines.append(f'<text x="{x:.1f}" y="{size - edge + 18}" text-anchor="middle">{tick:g} s</text>')
        lines.append(f'<text x="{edge - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g} s</text>')
    for one in rows:
        x, y, colour = at(one["published"]), size - at(one["predicted"]), colours[one["group"]]
        fill = colour if one["half"] == "tested" else "white"
        lines.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5">'
            f"<title>{one['row']}: published {one['published']:.3g} s, predicted {one['predicted']:.3g} s, "
            f"{one['half']}</title></circle>"
        )
    for i, (group, colour) in enumerate(colours.items()):
        y = edge + 16 * i
        lines.append(f'<circle cx="{edge + 12}" cy="{y}" r="4" fill="{colour}"/>')
        lines.append(f'<text x="{edge + 24}" y="{y + 4}">{group}</text>')
    middle = size / 2
    lines.append(
        f'<text x="{middle}" y="{size - 22}" text-anchor="middle">published seconds of a step</text>'
    )
    lines.append(
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">'
        "predicted step</text>"
    )
    lines.append(
        f'<text x="{middle}" y="30" text-anchor="middle">filled: steps that no constant was fitted to; '
        "dashed: 25 % more and less</text>"
    )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
