"""`neojax plan --picture`: a plan as bars: what fills the memory of a device, its largest buffers, what
travels, and where the time of a step goes."""

from collections.abc import Mapping, Sequence
from typing import Any

from neojax.plan.report import gb
from neojax.plan.svg import FAINT, GRID, INK, Drawing

LEFT, LONG = 24.0, 860.0
KINDS = {
    "parameters": "#d1495b",
    "optimizer": "#e07b1f",
    "batch": "#2f6fb2",
    "gradients": "#7b4fa3",
    "activations_kept": "#2a9d8f",
    "temporaries": "#8a97a6",
    "unused": "#dfe4e9",
}
TIMES = {
    "products": ("#2f6fb2", "products of matrices"),
    "attention": ("#2a9d8f", "kernels of attention"),
    "memory": ("#b5892a", "other traffic of memory"),
    "links": ("#d1495b", "collectives over links, those that run beside products too"),
    "links_alone": ("#e9a6ae", "of these, alone"),
    "network": ("#7b4fa3", "collectives over the network"),
}


def draw_plan(report: Mapping[str, Any], title: str) -> str:
    """The picture of a report of `neojax.plan.report.of_step`, as SVG text."""
    page = Drawing(1000)
    page.text(LEFT, 34, title, 19, bold=True)
    page.text(LEFT, 54, f"{report['devices']} x {report['device_kind']}, mesh {report['mesh']}", 12, FAINT)
    y = 92.0
    if "needed" in report["memory"]:
        y = _memory(page, y, report)
    if "estimate" in report:
        y = _times(page, y + 30, report["estimate"])
    if report["collectives"]:
        y = _collectives(page, y + 30, report["collectives"])
    return str(page)


def _memory(page: Drawing, y: float, report: Mapping[str, Any]) -> float:
    memory = report["memory"]
    room, needed = memory["available"], memory["needed"]
    verdict = "fits" if report["fits"] else f"{gb(needed - room)} too much"
    page.text(LEFT, y, "memory of a device", 14, bold=True)
    page.text(LEFT + 170, y, f"{gb(needed)}" + (f" of {gb(room)}: {verdict}" if room else ""), 12, FAINT)
    whole = max(needed, room or 0)
    y += 14
    x = LEFT
    for kind, ink in KINDS.items():
        wide = LONG * memory[kind] / whole
        page.rect(x, y, wide, 30, ink)
        x += wide
    if room:
        at = LEFT + LONG * room / whole
        page.rect(LEFT, y, at - LEFT, 30, line=INK)
        page.line([(at, y - 6), (at, y + 36)], INK, 2)
        page.text(at + 4, y - 8, f"there are {gb(room)}", 11, FAINT, "start" if at < 800 else "end")
    y += 54
    x = LEFT
    for kind, ink in KINDS.items():
        words = f"{kind.replace('_', ' ')} {gb(memory[kind])}"
        if x + 30 + 6.6 * len(words) > page.width:
            x, y = LEFT, y + 20
        page.rect(x, y - 10, 12, 12, ink, GRID)
        page.text(x + 17, y, words, 11)
        x += 32 + 6.6 * len(words)
    y += 24
    page.text(LEFT, y, "the largest buffers when it is fullest", 12, bold=True)
    rows = [(one["bytes"], KINDS[one["kind"].replace(" ", "_")], one["holds"]) for one in memory["largest"]]
    return _rows(page, y, rows, gb)


def _times(page: Drawing, y: float, time: Mapping[str, Any]) -> float:
    """Seconds of a step by what takes them, as a model estimates them."""
    page.text(LEFT, y, "time of a step, estimated", 14, bold=True)
    between = f"{seconds(time['low'])} to {seconds(time['high'])}"
    page.text(LEFT + 220, y, f"{seconds(time['seconds'])} ({between}), bound by {time['bound']}", 12, FAINT)
    rows = [(time["parts"][name], ink, words) for name, (ink, words) in TIMES.items() if time["parts"][name]]
    return _rows(page, y, rows, seconds)


def _collectives(page: Drawing, y: float, rows: Sequence[Mapping[str, Any]]) -> float:
    page.text(LEFT, y, "collectives of a step", 14, bold=True)
    page.text(LEFT + 190, y, "bytes of whole arrays; pale: computation runs beside", 12, FAINT)
    shown = [row for row in rows if row["bytes"] > 1e-3 * rows[0]["bytes"]][:10]
    bars = []
    for row in shown:
        ink = "#7b4fa3" if row["crosses"] else "#f0b7bf" if row["beside"] else "#d1495b"
        over = row["axes"] if row["crosses"] else f"over {row['axes']}"
        bars.append((row["bytes"], ink, f"{row['kind']} {over}, {row['types']}, {row['runs']} runs"))
    return _rows(page, y, bars, gb)


def _rows(page: Drawing, y: float, rows: Sequence[tuple[float, str, str]], written: Any) -> float:
    """A bar for each (size, colour, words)."""
    most = max((size for size, *_ in rows), default=1) or 1
    for size, ink, words in rows:
        y += 21
        page.rect(LEFT, y - 11, max(1.5, 300 * size / most), 14, ink)
        page.text(LEFT + 312, y, written(size), 11, INK)
        page.text(LEFT + 392, y, words, 11, FAINT)
    return y


def seconds(count: float) -> str:
    """A time in words."""
    return f"{count:.3g} s" if count >= 1 else f"{1e3 * count:.3g} ms"
