"""`neojax inspect --picture`: the mesh as it lies on the machine, what a device holds of every tensor, and
what moves over which axis."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from neojax.config import Config
from neojax.layout.devices import shape_text
from neojax.layout.mesh import Layout
from neojax.models import Transformer
from neojax.models.compute import COMPUTE_TYPES
from neojax.plan import chip_map
from neojax.plan.count import count
from neojax.plan.machine import Machine
from neojax.plan.report import gb
from neojax.plan.svg import AXES, FAINT, GRID, INK, Drawing, colour, mixed
from neojax.plan.trace import dcn_of, layout_of, trace

BAR, HIGH, ROW = 158.0, 11.0, 44.0
LEFT = 24.0
MOST_LINES = 64  # between the parts of a bar


@dataclass(frozen=True)
class Group:
    """Tensors that are split alike: what they are, their dimensions and sizes, and the bytes of a device's
    part, as they are stored. is_parameter: whether they may be stored otherwise than they are used."""

    what: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    bytes: float
    is_parameter: bool


@dataclass(frozen=True)
class Flow:
    """What moves in a step over axes of the mesh: bytes of whole arrays. crosses: whether it leaves a slice,
    for the network."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    runs: int
    crosses: bool


def title_of(config: str, topology: str) -> str:
    """The title of a picture of the configuration named `config`."""
    return f"{Path(config).stem} on {topology}" if topology else Path(config).stem


def flows_of(config: Config, on: Machine) -> list[Flow]:
    """What moves in a step of `config` on a machine, as its traced program is counted, the most first."""
    network = {axis for axis, n in dcn_of(config).items() if n > 1}
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for one in count(trace(config, on)).transfers:
        kind = "sum, each keeps a part" if one.kind == "sum" and set(one.cut) >= set(one.axes) else one.kind
        if math.prod(layout_of(config, on).mesh.shape[axis] for axis in one.axes) < 2:
            continue
        total = groups.setdefault((kind, one.axes), [0, 0])
        total[0] += one.bytes * one.times
        total[1] += one.times
    found = [
        Flow(kind, axes, moved, runs, bool(network & set(axes)))
        for (kind, axes), (moved, runs) in groups.items()
    ]
    return sorted(found, key=lambda flow: -flow.bytes)


def draw_layout(config: Config, layout: Layout, title: str, flows: Sequence[Flow] = ()) -> str:
    """The picture as SVG text. title: what it is of. Raises `NeojaxError` where the model cannot be laid
    out."""
    model = Transformer(config.model, layout, lora=config.train.lora)
    layout = model.layout
    page = Drawing(1180)
    page.text(LEFT, 34, title, 19, bold=True)
    rules = f"mesh {shape_text(layout.mesh.shape)}; layout {_rules(layout.used)}"
    stored = {dim: axes for dim, axes in layout.stored.items() if layout.used.get(dim) != axes}
    page.text(LEFT, 54, rules + (f"; stored {_rules(stored)}" if stored else ""), 12, FAINT)
    axes = axis_colours(layout)
    right, bottom = chip_map.draw(page, LEFT, 66, layout.mesh, axes)
    x = min(right + 48, 700)
    y = 92.0
    page.text(x, y, "axes of the mesh", 14, bold=True)
    for name, n in layout.mesh.shape.items():
        y += 22
        page.rect(x, y - 11, 13, 13, axes[name], INK)
        page.text(x + 20, y, f"{name}: {n}{_across(layout, name)}", 12)
        split = [d for d, own in layout.used.items() if name in own]
        kept = [d for d, own in layout.stored.items() if name in own and d not in split]
        said = ", ".join([*split, *(f"{d} (stored)" for d in kept)]) or "nothing: all parts are copies"
        y += 15
        page.text(x + 20, y, f"splits {said}", 11, FAINT)
    if flows:
        y = _draw_flows(page, x, y + 34, axes, flows)
    y = max(bottom, y) + 34
    page.text(LEFT, y, "what one device holds", 14, bold=True)
    page.text(
        LEFT + 190,
        y,
        "filled: its part of a dimension; upper bar: as parameters are stored, lower bar: as they are used",
        11,
        FAINT,
    )
    for group in [*parameters(model), *activations(config, layout)]:
        y += ROW
        _draw_group(page, y, group, layout)
    return str(page)


def axis_colours(layout: Layout) -> dict[str, str]:
    """A colour for every axis, which no dimension has."""
    return {name: AXES[i % len(AXES)] for i, name in enumerate(layout.mesh.shape)}


def parameters(model: Transformer) -> list[Group]:
    """The parameters, those with the same dimensions together, the largest first; vectors are one group."""
    dims = model.dims()
    groups: dict[tuple[str, ...], tuple[list[str], tuple[int, ...], float]] = {}
    for name, value in model.stored().items():
        if not hasattr(value, "sharding"):
            continue
        own = tuple(dims[name])
        flat = len([d for d in own if d != "layers"]) < 2
        held = math.prod(value.sharding.shard_shape(value.shape)) * value.dtype.itemsize
        key = ("vectors",) if flat else own
        what, shape, total = groups.get(key, ([], value.shape, 0.0))
        short = ".".join(name.split(".")[-2:]) if "." in name else name
        groups[key] = ([*what, *([short] if short not in what else [])], shape, total + held)
    found = []
    for key, (what, shape, held) in groups.items():
        if key == ("vectors",):
            found.append(Group("norms and biases", (), (), held, True))
        else:
            found.append(Group(_named(what), key, shape, held, True))
    return sorted(found, key=lambda group: -group.bytes)


def _named(names: Sequence[str]) -> str:
    """As many names as there is room for."""
    shown = list(names)
    while len(shown) > 1 and len(", ".join(shown)) > 30:
        shown.pop()
    return ", ".join(shown) + (" ..." if len(shown) < len(names) else "")


def activations(config: Config, layout: Layout) -> list[Group]:
    """The activations of one layer for a microbatch, and the logits."""
    model, train = config.model, config.train
    rows = train.microbatch or train.batch_size
    sizes = {
        "batch": rows,
        "sequence": model.n_ctx,
        "memory_length": model.n_ctx,
        "embd": model.n_embd,
        "heads": model.attention.heads,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "mlp": model.mlp_dim,
        "vocab": layout.padded_vocab(model.n_vocab),
    }
    shared = "heads" if model.kv_heads == model.attention.heads else "kv_heads"
    kinds = [
        ("residual stream", "batch sequence embd"),
        ("queries of a layer", "batch sequence heads head_dim"),
        ("its keys; its values", f"batch memory_length {shared} head_dim"),
        ("its MLP", "batch sequence mlp"),
    ]
    if "lm" in model.head.kinds:
        kinds.append(("logits (never whole)", "batch sequence vocab"))
    width = jnp.dtype(COMPUTE_TYPES["bfloat16" if train.precision == "auto" else train.precision]).itemsize
    found = []
    for what, text in kinds:
        dims = tuple(text.split())
        shape = tuple(sizes[dim] for dim in dims)
        parts = math.prod(layout.split(dim) for dim in dims)
        found.append(Group(what, dims, shape, math.prod(shape) * width / parts, False))
    return found


def _draw_group(page: Drawing, y: float, group: Group, layout: Layout) -> None:
    """A row: the name, a bar for every dimension, the bytes of a device's part."""
    page.line([(LEFT, y - 31), (page.width - LEFT, y - 31)], "#eceff2")
    page.text(LEFT, y - 10, group.what, 12, bold=group.is_parameter)
    page.text(LEFT, y + 4, f"{gb(group.bytes)} a device", 11, FAINT)
    x = LEFT + 226
    for dim, size in zip(group.dims, group.shape):
        stored = layout.axes(dim, stored=True) if group.is_parameter else layout.axes(dim)
        used = layout.axes(dim)
        parts = math.prod(layout.mesh.shape[a] for a in stored)
        said = f" over {'+'.join(stored)}" if stored else ""
        page.text(x, y - 16, f"{dim} {size:,}{said}", 11, INK if stored or used else FAINT)
        _draw_bar(page, x, y - 11, parts, colour(dim))
        if group.is_parameter:
            _draw_bar(page, x, y - 11 + HIGH + 2, math.prod(layout.mesh.shape[a] for a in used), colour(dim))
        x += BAR + 20
    if not group.dims:
        page.text(x, y - 4, "vectors: small, and split where one of the dimensions above is", 11, FAINT)


def _draw_bar(page: Drawing, x: float, y: float, parts: int, own: str) -> None:
    """A dimension in its parts, of which a device has one."""
    page.rect(x, y, BAR, HIGH, mixed(own, 0.14))
    page.rect(x, y, max(1.5, BAR / parts), HIGH, own)
    if 1 < parts <= MOST_LINES:
        for number in range(1, parts):
            at = x + BAR * number / parts
            page.line([(at, y), (at, y + HIGH)], "#ffffff", 0.8)
    page.rect(x, y, BAR, HIGH, line=GRID)


def _draw_flows(page: Drawing, x: float, y: float, axes: dict[str, str], flows: Sequence[Flow]) -> float:
    """A bar for each kind of collective and the axes that it runs over."""
    page.text(x, y, "what moves in a step", 14, bold=True)
    page.text(x + 176, y, "bytes of whole arrays", 11, FAINT)
    most = max(flow.bytes for flow in flows)
    for flow in [flow for flow in flows if flow.bytes > 1e-3 * most][:9]:
        y += 26
        own = [axes[name] for name in flow.axes]
        length = max(2.0, 150 * flow.bytes / most)
        for number, ink in enumerate(own):
            page.rect(x, y - 11 + number * HIGH / len(own), length, HIGH / len(own), ink)
        over = "+".join(flow.axes) + (", across slices" if flow.crosses else "")
        page.text(x + 158, y - 2, f"{flow.kind} over {over}: {gb(flow.bytes)}, {flow.runs:,} runs", 11)
    return y


def _rules(maps: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{dim}:{'+'.join(axes)}" for dim, axes in maps.items() if axes) or "nothing"


def _across(layout: Layout, name: str) -> str:
    """Along which axes of the torus an axis of the mesh runs, if there is one."""
    all_cells = chip_map.cells(layout.mesh)
    i = list(layout.mesh.shape).index(name)
    own = [c.place for c in all_cells if all(n == 0 for j, n in enumerate(c.at) if j != i)]
    if isinstance(layout.mesh, AbstractMesh) or not hasattr(layout.device, "coords"):
        return ""
    words = [what for at, what in enumerate(("slices", "z", "y", "x")) if len({p[at] for p in own}) > 1]
    return f", along {' and '.join(reversed(words))}" if words else ""
