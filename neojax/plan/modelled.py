"""What `neojax plan` says of a step that nothing compiles: the analytic model's counts, in the form that a
compiled step's have."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from neojax.config import Config
from neojax.layout.mesh import Layout
from neojax.plan.buffers import KINDS, LARGEST, Reader, named_or
from neojax.plan.compiled import local_sizes, repetitions, tensors
from neojax.plan.estimate import Analysis, is_alone
from neojax.plan.machine import Machine, path, paths
from neojax.plan.report import flops_of, hosts_of, of_machine
from neojax.plan.trace import dcn_of, layout_of
from neojax.plan.work import Held, Transfer

COPIES = ("gather", "reshard", "convert_element_type", "transpose", "again")
SHORT = {"bfloat16": "bf16", "float32": "f32", "float16": "f16", "int32": "s32", "int8": "s8", "bool": "pred"}


def of_model(one: Analysis) -> dict[str, Any]:
    """Of a step by the model alone, with the keys of `report.of_step`: machine, memory, FLOPs, collectives,
    hosts. Bytes, unless a name says otherwise; `compiled` is None."""
    config, on = one.config, one.on
    layout = layout_of(config, on)
    return {
        **of_machine(config, layout, on),
        "fits": one.fits,
        "memory": memory_of(one),
        "collectives": collectives_of(one),
        **flops_of(config, on.devices, one),
        "hosts": hosts_on(config, layout, on),
    }


def memory_of(one: Analysis) -> dict[str, Any]:
    """Bytes of one device when it is fullest: what they hold is told from shapes, as of compiled programs."""
    memory, layout = one.work.memory, one.model.layout
    reader = Reader({}, tensors(one.model), dict(local_sizes(one.config, layout)), repetitions(one.model))
    kinds = dict.fromkeys(KINDS, 0)
    kinds |= {"parameters": memory.parameters, "optimizer": memory.optimizer, "batch": memory.batch}
    found = []
    for held in one.work.held:
        kind, holds = _told(held, reader)
        kinds[kind] += held.bytes
        found.append((held, kind, holds))
    kinds["temporaries"] += memory.total - sum(kinds.values())  # what loops take beside
    found += [(held, *reader.given_as(held.what)) for held in one.work.arguments]
    largest = sorted(found, key=lambda each: -each[0].bytes)[:LARGEST]
    return {
        "available": one.room,
        "needed": memory.total,
        **{kind.replace(" ", "_"): n for kind, n in kinds.items()},
        "unused": 0,
        "most_gradients": max(memory.gradients, kinds["gradients"]),
        "most_activations_kept": kinds["activations kept"],
        "largest": [
            {"bytes": held.bytes, "kind": kind, "shape": _type(held), "holds": holds}
            for held, kind, holds in largest
        ],
    }


def _told(held: Held, reader: Reader) -> tuple[str, str]:
    """(the kind of an array that is no argument, what it holds)."""
    alike = reader.like(held.shape)
    if alike and held.what in COPIES:
        return "temporaries", f"parameter {named_or(alike)}, gathered or in another layout"
    if alike and held.what not in ("reshape", "pad"):
        return "gradients", f"gradient of {named_or(alike)}"
    what = " ".join(reader.named(held.shape)) or "scalar"
    if held.what == "kept":
        return "activations kept", f"kept for the backward pass: {what}"
    return "temporaries", f"{what} ({held.what})"


def _type(held: Held) -> str:
    """As compilers write it, such as bf16[24,2048]."""
    return f"{SHORT.get(held.dtype, held.dtype)}[{','.join(map(str, held.shape))}]"


def collectives_of(one: Analysis) -> list[dict[str, Any]]:
    """The collectives of a step by kind, axes and types, the largest first, as the program has them; a sum of
    which each keeps a part as one. crosses: it leaves a slice, or on GPUs the switch."""
    on, taken = one.on, paths(one.on, dict(one.work.sizes), dcn_of(one.config))
    groups: dict[tuple[str, str, str, bool, bool], list[int]] = {}
    for moved in one.work.transfers:
        way = path(on, [part for axis in moved.axes for part in taken[axis]])
        key = (_kind(moved), "+".join(moved.axes), moved.dtype, way.outer > 1, not is_alone(moved, on))
        total = groups.setdefault(key, [0, 0])
        total[0] += moved.times
        total[1] += moved.times * moved.bytes
    names = ("kind", "axes", "types", "crosses", "beside", "runs", "bytes")
    rows = [dict(zip(names, (*key, *total))) for key, total in groups.items()]
    return sorted(rows, key=lambda row: -row["bytes"])


def _kind(moved: Transfer) -> str:
    """As compilers call it."""
    if moved.kind == "sum":
        return "reduce-scatter" if set(moved.cut) >= set(moved.axes) else "all-reduce"
    return {"gather": "all-gather", "permute": "collective-permute"}.get(moved.kind, moved.kind)


def hosts_on(config: Config, layout: Layout, on: Machine) -> list[dict[str, Any]]:
    """Of every host of GPUs what `report.hosts` says: its devices, and the rows that it reads. Devices lie in
    the order of the mesh, as JAX numbers GPUs. Of TPUs, whose hosts lie as the compiler has them, none."""
    if on.chip.axes:
        return []
    sizes = layout.mesh.shape
    axes = layout.axes("batch")
    rows = config.train.microbatch or config.train.batch_size
    each = rows // layout.split("batch")
    part = np.zeros(tuple(sizes.values()), int)
    for axis in axes:
        along = [1] * len(sizes)
        along[list(sizes).index(axis)] = sizes[axis]
        part = part * sizes[axis] + np.arange(sizes[axis]).reshape(along)
    flat, count = part.ravel(), min(on.chip.host, on.devices)
    owners = [(number // count, own) for number, own in enumerate(flat)]
    held: dict[int, Sequence[int]] = {}
    for host in range(-(-on.devices // count)):
        parts = sorted({int(own) for at, own in owners if at == host})
        held[host] = [row for own in parts for row in range(own * each, (own + 1) * each)]
    devices = Counter(at for at, _ in owners)
    return hosts_of(config, [(host, devices[host], own) for host, own in held.items()])
