"""The chips of a mesh as they lie: a place on the page for each, its part along every axis, its host."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from neojax.plan.svg import FAINT, GRID, INK, Drawing, mixed

Place = tuple[int, int, int, int]  # slice, z, y, x


@dataclass(frozen=True)
class Cell:
    """A chip: its place on the machine, its numbers along the axes of the mesh, and its host."""

    place: Place
    at: tuple[int, ...]
    host: int


def cells(mesh: Mesh | AbstractMesh) -> list[Cell]:
    """The chips of a mesh; where devices have no coordinates, in rows of the last axis."""
    sizes = tuple(mesh.shape.values())
    devices = mesh.devices if isinstance(mesh, Mesh) else np.full(sizes, None, object)
    columns = _columns(sizes)
    found = []
    for number, at in enumerate(np.ndindex(sizes)):
        device: Any = devices[at]
        coords = getattr(device, "coords", None)
        if coords is None:
            place: Place = (0, 0, number // columns, number % columns)
        else:
            core = getattr(device, "core_on_chip", 0) or 0
            cores = 1 + max((getattr(d, "core_on_chip", 0) or 0) for d in devices.flat)
            x, y, z = coords
            place = (getattr(device, "slice_index", 0) or 0, z, y, x * cores + core)
        found.append(Cell(place, at, getattr(device, "process_index", 0)))
    return found


def _columns(sizes: Sequence[int]) -> int:
    """Devices in one row, where these have no place of their own."""
    last = next((n for n in reversed(sizes) if n > 1), 1)
    total = math.prod(sizes)
    if last == total or last > 32:
        return max((n for n in range(1, 33) if total % n == 0 and n * n <= 4 * total), default=1)
    return last


def draw(
    page: Drawing, x: float, y: float, mesh: Mesh | AbstractMesh, axes: Mapping[str, str]
) -> tuple[float, float]:
    """Draws the chips of a mesh with their top left corner at (x, y); `axes`: the colour of each. Returns
    the right and lower ends.

    A chip has a stripe for every axis, which is the darker the higher its number along it. A line runs along
    each axis through the chips that are first along all others, above and left of the numbers; it breaks off
    where the next chip is no neighbour and lies in no row or column with it. Where it is long and leaves its
    plane, it runs only to the next one.
    """
    all_cells = cells(mesh)
    names = [name for name, n in mesh.shape.items() if n > 1]
    sizes = list(mesh.shape.values())
    width = 1 + max(c.place[3] for c in all_cells)
    height = 1 + max(c.place[2] for c in all_cells)
    planes = sorted({c.place[:2] for c in all_cells})
    row = max(1, min(len(planes), math.floor(24 / width))) if len(planes) > 1 else 1
    side = max(15.0, min(54.0, 520 / (row * width)))
    gap = 26.0
    corner = {}
    for number, plane in enumerate(planes):
        across, down = number % row, number // row
        corner[plane] = (x + across * (width * side + gap), y + 16 + down * (height * side + gap + 14))
        slices = len({s for s, _ in planes}) > 1
        title = [f"slice {plane[0]}"] if slices else []
        title += [f"z = {plane[1]}"] if len({z for _, z in planes}) > 1 else []
        page.text(corner[plane][0], corner[plane][1] - 5, ", ".join(title), 11, FAINT)
    centre, planes_of = {}, {cell.at: cell.place[:2] for cell in all_cells}
    for cell in all_cells:
        left, top = corner[cell.place[:2]]
        left, top = left + cell.place[3] * side, top + cell.place[2] * side
        shown = [i for i, name in enumerate(mesh.shape) if name in names]
        stripe = (side - 2) / max(1, len(shown))
        for number, i in enumerate(shown):
            share = 0.08 + 0.42 * cell.at[i] / max(1, sizes[i] - 1)
            name = list(mesh.shape)[i]
            page.rect(left + 1 + number * stripe, top + 1, stripe, side - 2, mixed(axes[name], share))
        page.rect(left + 1, top + 1, side - 2, side - 2, line=GRID)
        centre[cell.at] = (left + side / 2, top + side / 2)
    _draw_hosts(page, all_cells, corner, side)
    for number, name in enumerate(names):
        i = list(mesh.shape).index(name)
        along = [tuple(n if j == i else 0 for j in range(len(sizes))) for n in range(sizes[i])]
        if len(along) > 8 and len({planes_of[at] for at in along}) > 1:
            along = along[:2]
        shift = side * (0.44 - 0.07 * number)
        points = [(centre[at][0] - shift, centre[at][1] - 0.8 * shift) for at in along]
        for run in [run for run in _runs(points, side) if len(run) > 1]:
            page.line(run, axes[name], 2.2 if side > 20 else 1.4, arrow=True)
    for cell in all_cells:
        label = ",".join(str(cell.at[i]) for i, name in enumerate(mesh.shape) if name in names) or "0"
        size = min(11.0, 1.25 * side / max(3, len(label)))
        if size >= 5:
            px, py = centre[cell.at]
            page.text(px + side * 0.06, py + side * 0.36, label, round(size, 1), INK, "middle")
    right = max(left + width * side for left, _ in corner.values())
    bottom = max(top + height * side for _, top in corner.values())
    return right, bottom


def _runs(points: Sequence[tuple[float, float]], side: float) -> list[list[tuple[float, float]]]:
    """A way through points in pieces: a step that is neither short nor along a row or column is no part."""
    runs = [[points[0]]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        wide, high = abs(x1 - x0), abs(y1 - y0)
        if min(wide, high) > 0.01 * side and max(wide, high) > 1.5 * side:
            runs.append([])
        runs[-1].append((x1, y1))
    return runs


def _draw_hosts(
    page: Drawing,
    all_cells: Sequence[Cell],
    corner: Mapping[tuple[int, int], tuple[float, float]],
    side: float,
) -> None:
    """A dashed frame around the chips of each host."""
    if len({cell.host for cell in all_cells}) < 2:
        return
    groups: dict[tuple[int, tuple[int, int]], list[Cell]] = {}
    for cell in all_cells:
        groups.setdefault((cell.host, cell.place[:2]), []).append(cell)
    for (_, plane), own in groups.items():
        left, top = corner[plane]
        xs, ys = [c.place[3] for c in own], [c.place[2] for c in own]
        page.rect(
            left + min(xs) * side,
            top + min(ys) * side,
            (max(xs) - min(xs) + 1) * side,
            (max(ys) - min(ys) + 1) * side,
            line=FAINT,
            dash="3 2",
        )
