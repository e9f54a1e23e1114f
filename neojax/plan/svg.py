"""A drawing as SVG text: rectangles, lines and words, and one colour for each dimension and each axis."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

FONT = "DejaVu Sans, Verdana, Helvetica, sans-serif"
INK, FAINT, GRID = "#1f2933", "#616e7c", "#cbd2d9"
COLOURS = {
    "batch": "#2f6fb2",
    "sequence": "#2a9d8f",
    "memory_length": "#74b72b",
    "vocab": "#7b4fa3",
    "embd": "#d1495b",
    "heads": "#e07b1f",
    "kv_heads": "#e07b1f",
    "mlp": "#b5892a",
    "experts": "#c0399f",
    "layers": "#4a5568",
    "positions": "#3a8fa8",
}
AXES = ("#1a1a1a", "#7a4a21", "#62701a", "#7d2248", "#164e63")  # darker than any dimension
OTHERS = ("#8a6d5a", "#5b7f5b", "#6b6fb0", "#a05a5a", "#508a8a")


def colour(dim: str) -> str:
    """The colour of a dimension."""
    return COLOURS.get(dim) or OTHERS[sum(map(ord, dim)) % len(OTHERS)]


def mixed(own: str, share: float) -> str:
    """A colour with white: `share` of it is its own."""
    parts = (int(own[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) * share):02x}" for part in parts)


class Drawing:
    """A page that grows downwards; `height` is what is used of it. Lengths are pixels."""

    def __init__(self, width: float):
        self.width, self.height = width, 0.0
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str = "none", line: str = "none", dash: str = ""
    ) -> None:
        """A rectangle."""
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self._add(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}" '
            f'stroke="{line}"{more}/>',
            y + h,
        )

    def line(
        self, points: Sequence[tuple[float, float]], ink: str, width: float = 1.0, arrow: bool = False
    ) -> None:
        """A line through points, with a dot where it begins and a tip where it ends if it is an arrow."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add(
            f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="{width}" '
            'stroke-linejoin="round" stroke-opacity="0.85"/>',
            max(y for _, y in points),
        )
        if arrow and len(points) > 1:
            (x0, y0), (x1, y1) = points[0], points[-1]
            (bx, by) = points[-2]
            length = max(1e-6, ((x1 - bx) ** 2 + (y1 - by) ** 2) ** 0.5)
            ux, uy = (x1 - bx) / length * 5, (y1 - by) / length * 5
            tip = f"{x1 + ux:.1f},{y1 + uy:.1f} {x1 - uy:.1f},{y1 + ux:.1f} {x1 + uy:.1f},{y1 - ux:.1f}"
            self._add(f'<circle cx="{x0:.1f}" cy="{y0:.1f}" r="3" fill="{ink}"/>', y0)
            self._add(f'<polygon points="{tip}" fill="{ink}"/>', y1)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 12,
        ink: str = INK,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Words on one line; y is their base. anchor: start, middle or end at x."""
        weight = ' font-weight="bold"' if bold else ""
        self._add(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{ink}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>",
            y + size / 3,
        )

    def __str__(self) -> str:
        wide, high = round(self.width), round(self.height + 20)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" '
            f'viewBox="0 0 {wide} {high}" font-family="{FONT}">\n'
            '<rect width="100%" height="100%" fill="white"/>\n'
        )
        return head + "\n".join(self._parts) + "\n</svg>\n"

    def _add(self, part: str, bottom: float) -> None:
        self._parts.append(part)
        self.height = max(self.height, bottom)
