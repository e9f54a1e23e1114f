"""`neojax inspect --topology`: a mesh as it lies on a TPU slice, and what each of its hosts holds."""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from neojax.config import Config
from neojax.data.share import Share
from neojax.layout.mesh import Layout


def print_slice(config: Config, layout: Layout) -> None:
    """The place of every chip in the mesh, drawn where it lies in the slice, and every host's chips and
    rows."""
    devices = layout.mesh.devices  # type: ignore[union-attr]
    axes = " ".join(layout.mesh.axis_names)
    print(f"\nthe mesh on the slice, by chip: its number along {axes}")
    places = {device: at for at, device in np.ndenumerate(devices)}
    for number, own in sorted(_by(places, lambda d: getattr(d, "slice_index", 0)).items()):
        for z, plane in sorted(_by(own, lambda d: d.coords[2]).items()):
            title = [f"slice {number}"] if len({getattr(d, "slice_index", 0) for d in places}) > 1 else []
            title += [f"z = {z}"] if max(d.coords[2] for d in own) else []
            print(*([", ".join(title)] if title else []), *_drawn(plane, places), sep="\n")
    microbatch = config.train.microbatch or config.train.batch_size
    print(f"\nrows of every microbatch of {microbatch} sequences, by host")
    for host, own in sorted(_by(places, lambda d: d.process_index).items()):
        chips = " ".join(",".join(map(str, d.coords)) for d in sorted(own, key=lambda d: d.id))
        print(f"host {host:<4} chips {chips:<32} rows {ranges(Share(layout, microbatch, own).held)}")


def ranges(numbers: Iterable[int]) -> str:
    """Rising numbers as text, runs of them as first-last: 0-3, 8-11."""
    runs: list[list[int]] = []
    for n in map(int, numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _by(devices: Iterable[jax.Device], key) -> dict[int, list[jax.Device]]:
    groups: dict[int, list[jax.Device]] = {}
    for device in devices:
        groups.setdefault(key(device), []).append(device)
    return groups


def _drawn(plane: Sequence[jax.Device], places: dict[jax.Device, tuple[int, ...]]) -> list[str]:
    """A line for each y, in it a cell for each x."""
    cells = {tuple(d.coords[:2]): ",".join(map(str, places[d])) for d in plane}  # type: ignore[attr-defined]
    width = max(map(len, cells.values()))
    columns, rows = (sorted({at[i] for at in cells}) for i in (0, 1))
    return ["  " + " ".join(cells.get((x, y), "").rjust(width) for x in columns) for y in rows]
