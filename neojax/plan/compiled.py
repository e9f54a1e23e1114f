"""The training step of a configuration, compiled for devices that need not be here: whether it fits, what
memory holds, and what travels."""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from neojax.config import Config
from neojax.data.batch import Batch
from neojax.data.share import dims_of
from neojax.errors import NeojaxError
from neojax.host_memory import host_memory
from neojax.layout.mesh import Layout, make_layout
from neojax.models import Transformer
from neojax.models.fit import example, without_effect
from neojax.plan import buffers
from neojax.plan.buffers import Memory, Tensor
from neojax.plan.hlo import Collective, collectives
from neojax.plan.places import Places
from neojax.training.loop import described
from neojax.training.state import abstract_state
from neojax.training.step import make_train_step

# The compiler's effort, as JAX's option for it takes it: the same collectives in a fraction of the time, some
# 30 % more temporaries. JAX 0.12 has levels instead, of which TPUs were not asked.
EFFORT = {
    "jax_exec_time_optimization_effort": (0.0, -1.0),
    "jax_optimization_level": ("UNKNOWN", "O1"),
}
HBM = re.compile(
    r"exceeds available HBM \(([\d.]+)([KMGT])\)|Used [\d.]+[KMGT] of ([\d.]+)([KMGT]) hbm", re.IGNORECASE
)
UNIT = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Moved:
    """Collectives of one kind over the same axes: `runs` a step, and their bytes, of the whole arrays as a
    group has them after a gather or before a sum: one chip of each slice is a group between slices. axes:
    those of the mesh; crosses: whether they leave a slice, for the network; beside: whether computation runs
    meanwhile."""

    kind: str
    axes: str
    types: str
    crosses: bool
    beside: bool
    runs: int
    bytes: int


@dataclass(frozen=True)
class Compiled:
    """A compiled step. available: bytes that one device has for it, None where it does not say; memory: what
    it needs, None where the compiler did not write it; found: its collectives, none of a program that does
    not fit."""

    model: Transformer
    layout: Layout
    available: int | None
    memory: Memory | None
    fits: bool
    found: tuple[Collective, ...]
    quick: bool
    seconds: float

    @property
    def moved(self) -> tuple[Moved, ...]:
        """The collectives by kind, axes and types, the largest first."""
        return _moved(self.found, self.layout, self.quick)


def compile_step(config: Config, devices: Sequence[jax.Device] | None, quick: bool = False) -> Compiled:
    """Compiles the training step of `config` for `devices` (default: those here, as training takes them).

    quick: with little effort: the same collectives, of which it is not said what runs beside them but what
    may, and more temporaries. A step that needs more memory than there is has an answer, too. Raises
    `NeojaxError` where the layout does not fit, or the compiler refuses the program for another reason.
    """
    layout = make_layout(config.mesh, devices)
    with _uncached():  # its compiler is asked for options; of devices that are not here JAX reads no cache
        model, optimizer = described(config, layout)
        if idle := without_effect(model)[0]:
            raise NeojaxError(idle)
        step = make_train_step(model, optimizer, config.train)
    with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
        batch = abstract_batch(config, layout)
        lowered = step.lower(  # type: ignore[attr-defined]
            abstract_state(model, optimizer), batch, jax.ShapeDtypeStruct((), jnp.int32)
        )
    return compiled_of(lowered, model, layout, local_sizes(config, layout), quick)


def compiled_of(
    lowered: Any, model: Transformer, layout: Layout, sizes: Sequence[tuple[str, int]], quick: bool = False
) -> Compiled:
    """The program of `lowered`, compiled. sizes: of the dimensions of its activations, as `local_sizes`.
    Raises `NeojaxError` where the compiler refuses it for another reason than memory."""
    start = time.perf_counter()
    with _folder() as folder, _effort(quick), jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
        text, room = _text(lowered, folder)
        memory = buffers.read(folder, tensors(model), sizes, repetitions(model))
    seconds = time.perf_counter() - start
    room = room or available(layout)
    fits = bool(text) and (memory is None or room is None or memory.needed <= room)
    return Compiled(model, layout, room, memory, fits, tuple(collectives(text)), quick, seconds)


def _text(lowered: Any, folder: Path) -> tuple[str, int | None]:
    """The optimised program, empty where it does not fit, and then the memory that there is."""
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    try:
        return lowered.compile(compiler_options=options).as_text(), None
    except jax.errors.JaxRuntimeError as e:
        cause = " ".join(str(e).split())
        if not cause.startswith("RESOURCE_EXHAUSTED") or "vmem" in cause.lower():
            raise NeojaxError(f"the compiler refuses the step: {cause[:300]}") from None
        found = HBM.search(cause)
        number, unit = [part for part in found.groups() if part] if found else ("0", "G")
        return "", int(float(number) * UNIT[unit.upper()]) or None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="neojax-plan-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _uncached(**more: Any) -> Iterator[None]:
    """JAX without a cache of programs, and with `more` of its options changed. JAX looks but once whether the
    cache is on, unless it is reset."""
    changed = {"jax_enable_compilation_cache": False, **more}
    before = {name: getattr(jax.config, name) for name in changed}

    def change(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    change(changed)
    try:
        yield
    finally:
        change(before)


def _effort(quick: bool) -> contextlib.AbstractContextManager[None]:
    """The compiler's effort, and no program from a cache, of which nothing would be written."""
    name = next(name for name in EFFORT if hasattr(jax.config, name))
    return _uncached(**{name: EFFORT[name][quick]})


def available(layout: Layout) -> int | None:
    """Bytes of memory that a program may take on one device of `layout`; None where that is not told.

    The compiler of a TPU says it of a program that cannot be. CPU devices share the memory of this machine.
    """
    device = layout.device
    if layout.platform == "tpu":
        alone = jax.make_mesh((1,), ("alone",), devices=[device])
        much = jax.ShapeDtypeStruct(
            (1 << 30, 1 << 10), jnp.float32, sharding=jax.sharding.NamedSharding(alone, jax.P())
        )
        with jax.set_mesh(alone), _folder() as folder:
            return _text(jax.jit(jnp.tanh).lower(much), folder)[1]
    if layout.platform == "cpu":
        host = host_memory()
        return host and host // len(layout.mesh.local_devices)  # type: ignore[union-attr]
    return (device.memory_stats() or {}).get("bytes_limit")


def abstract_batch(config: Config, layout: Layout) -> Batch:
    """The shapes, types and layout of a step's batch, as training with `config` gives it."""
    rows = config.train.microbatch or config.train.batch_size
    like = example(config.model, rows, config.model.n_ctx)
    task = config.data.task
    if config.data.isolate_documents or task == "sft":
        like = like._replace(segments=like.tokens, positions=like.tokens)
    elif config.data.pairs != "none" or task != "none":
        types = like.tokens if config.model.embedding.token_types else None
        like = like._replace(segments=like.tokens, token_types=types)
    count = config.train.batch_size // rows

    def array(name: str, one: Any) -> Any:
        shape = (count, *one.shape)
        sharding = layout.sharding(dims_of(name, len(shape)), shape, what="the batch")
        return jax.ShapeDtypeStruct(shape, one.dtype, sharding=sharding)

    return like._replace(**{n: array(n, one) for n, one in like._asdict().items() if one is not None})


def tensors(model: Transformer) -> dict[str, Tensor]:
    """Every parameter, by name."""
    dims = model.dims()
    found = {}
    for name, value in model.stored().items():
        if hasattr(value, "sharding"):  # not a quantised pair
            found[name] = Tensor(tuple(dims[name]), value.shape, value.sharding.shard_shape(value.shape))
    return found


def local_sizes(config: Config, layout: Layout) -> list[tuple[str, int]]:
    """(dimension, its size on one device), in the order in which activations have them."""
    model = config.model
    rows = config.train.microbatch or config.train.batch_size
    sizes = {
        "batch": rows,
        "heads": model.attention.heads,
        "sequence": model.n_ctx,
        "head_dim": model.head_dim,
        "embd": model.n_embd,
        "mlp": model.mlp_dim,
        "vocab": layout.padded_vocab(model.n_vocab),
    }
    return [(dim, n // layout.split(dim)) for dim, n in sizes.items()]


def repetitions(model: Transformer) -> tuple[int, ...]:
    """How often the groups of layers repeat that are stacked."""
    dims = model.dims()
    found = {
        v.shape[0] for n, v in model.stored().items() if dims[n][:1] == ("layers",) and hasattr(v, "shape")
    }
    return tuple(found)


def _moved(found: Sequence[Collective], layout: Layout, quick: bool) -> tuple[Moved, ...]:
    places = Places(layout.mesh)  # type: ignore[arg-type]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for one in found:
        crosses = one.kind == "transfer"
        kind = f"{one.operation.lower().replace('_', '-')} between slices" if crosses else one.kind
        if one.is_gather:
            kind = "all-gather as a sum"
        axes = places.network if crosses else places.axes(max(one.groups, key=len))
        beside = one.beside or (quick and one.is_marked and one.times > 1)
        key = kind, axes, "+".join(sorted({dtype for dtype, _ in one.arrays})), crosses, beside
        parts = places.slices if one.operation == "ALL_GATHER" else 1  # a chip sends its part of the whole
        runs, moved = groups.setdefault(key, [0, 0])
        groups[key] = [runs + one.times, moved + one.times * one.bytes * parts]
    rows = (Moved(*key, *counts) for key, counts in groups.items())
    return tuple(sorted((row for row in rows if row.axes != "none" and row.runs), key=lambda row: -row.bytes))
