"""`neojax plan --decode`: the sampler's step compiled for devices that need not be here: what a row of the
batch takes, how many fit, and what bounds their tokens a second."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh

from neojax.config import Config
from neojax.layout.chips import Chip, chip_of
from neojax.layout.mesh import Layout, make_layout
from neojax.models import Transformer
from neojax.models.compute import Compute, compute_type
from neojax.models.flops import forward_flops_per_token
from neojax.models.inference import BY_TIME, inference_compute, inference_layout
from neojax.models.matrices import narrow
from neojax.plan.compiled import Compiled, compiled_of
from neojax.plan.cost import room_is
from neojax.plan.machine import Machine, machine
from neojax.plan.report import (
    gb,
    of_machine,
    of_program,
    print_collectives,
    print_machine,
    print_memory,
    show,
    table_of,
)
from neojax.plan.trace import layout_of
from neojax.sampling import decode
from neojax.sampling.decode import Asked
from neojax.sampling.logits import Controls

ROWS = 8, 128  # of each part of the batch, in the programs that are compiled
ENDS = 1
SIZES = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Decoding:
    """A step of the sampler whose caches have room for `slots` tokens. one: its program for `rows` rows, None
    where it is told by the model alone. On one device: available: bytes of memory, None where that is not
    told; weights: theirs; fixed: what is beside them whatever the rows; row: bytes of the caches of a row
    that lies there; other: bytes that it takes beside them. parts: of the batch, over devices."""

    layout: Layout
    one: Compiled | None
    rows: int
    slots: int
    available: float | None
    weights: int
    fixed: float
    row: float
    other: float

    @property
    def parts(self) -> int:
        """Parts of the batch, which lie on different devices."""
        return self.layout.split("batch")

    @property
    def most_rows(self) -> int | None:
        """Rows that fit on the machine at once; None where it is not told what memory it has."""
        if self.available is None:
            return None
        left = self.available - self.weights - self.fixed
        return self.parts * max(0, int(left / (self.row + self.other)))


def compile_decoding(
    config: Config, devices: Sequence[jax.Device] | None, weights: str = "auto", quick: bool = False
) -> Decoding:
    """Compiles one token of sampling from the model of `config`, on the mesh of `config` over `devices`
    (default: those here), with matrices kept as `weights` (see `neojax.load`): for two numbers of rows, which
    tell apart what a row takes and what is there anyhow. Raises `NeojaxError` where the layout does not
    fit."""
    layout = inference_layout(make_layout(config.mesh, devices))
    model = _abstract(config, layout, weights)
    layout = model.layout
    slots = config.model.n_ctx
    found = []
    for each in ROWS:
        with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
            rows = each * layout.split("batch")
            graphdef, state = nnx.split(model)
            begun = _rows(graphdef, state, layout, rows, slots)
            scalar = _like(layout, (), np.int32)
            done = _like(layout, (rows,), np.bool_, "batch")
            lowered = decode._decode.lower(graphdef, state, begun, scalar, done, 1)
        sizes = {
            "batch": each,
            "heads": config.model.attention.heads // layout.split("heads"),
            "sequence": slots,
            "head_dim": config.model.head_dim,
            "embd": config.model.n_embd // layout.split("embd"),
            "mlp": config.model.mlp_dim // layout.split("mlp"),
            "vocab": layout.padded_vocab(config.model.n_vocab) // layout.split("vocab"),
        }
        one = compiled_of(lowered, model, layout, list(sizes.items()), quick)
        caches = _bytes(begun.caches)
        found.append((one, one.memory.needed if one.memory else _bytes(state) + caches, caches))
    (one, needed, caches), (_, more, _) = found
    held, row = _bytes(state), caches / ROWS[0]
    each_row = max(row, (more - needed) / (ROWS[1] - ROWS[0]))
    fixed = max(0.0, needed - held - ROWS[0] * each_row)
    rows = ROWS[0] * layout.split("batch")
    return Decoding(layout, one, rows, slots, one.available, held, fixed, row, each_row - row)


def count_decoding(config: Config, on: Machine, weights: str = "auto") -> Decoding:
    """The same without compiling: of a row its caches, its settings and its logits are counted, no
    temporaries. Raises `NeojaxError` where the layout does not fit."""
    layout = inference_layout(layout_of(config, on))
    with jax.sharding.use_abstract_mesh(layout.mesh):  # type: ignore[arg-type]
        model = _abstract(config, layout, weights)
        layout, slots = model.layout, config.model.n_ctx
        rows = ROWS[0] * layout.split("batch")
        graphdef, state = nnx.split(model)
        begun = _rows(graphdef, state, layout, rows, slots)
    caches = _bytes(begun.caches)
    logits = 4 * layout.padded_vocab(config.model.n_vocab) / layout.split("vocab")
    other = (_bytes(begun) - caches) / ROWS[0] + logits
    return Decoding(layout, None, rows, slots, on.room, _bytes(state), 0, caches / ROWS[0], other)


def of_decoding(config: Config, topology: str, found: Decoding) -> dict[str, Any]:
    """What `neojax plan --decode` says, as one dictionary. Bytes, unless a name says otherwise."""
    if found.one is not None:
        program = of_program(config, topology, found.one)
        bounded = bounds(found, config, chip_of(found.layout.device))
    else:
        on = machine(topology)
        program = of_machine(config, found.layout, on) | {"fits": bool(found.most_rows), "collectives": []}
        program |= {"room_is": room_is(on), "memory": {"available": found.available}}
        bounded = bounds(found, config, on.chip)
    return {
        **program,
        "rows": found.rows,
        "slots": found.slots,
        "weights_per_device": found.weights,
        "fixed_beside_weights": found.fixed,
        "cache_per_row": found.row,
        "beside_cache_per_row": found.other,
        "most_rows": found.most_rows,
        "bounds": bounded,
    }


def print_decoding(report: Mapping[str, Any]) -> None:
    """A report of `of_decoding` as a person reads it."""
    print_machine(report)
    if report["compiled"]:
        print_memory(report, f"one token of {report['rows']} rows, ")
    elif report["room_is"]:
        print(f"a device has room for {report['room_is']}")
    cache, beside = gb(report["cache_per_row"]), gb(report["beside_cache_per_row"])
    print(
        f"\non one device: weights {gb(report['weights_per_device'])}, "
        f"{gb(report['fixed_beside_weights'])} beside them; of every row that lies there, with "
        f"{report['slots']:,} tokens, a cache of {cache} and {beside} beside it"
    )
    if report["most_rows"] is not None:
        left_out = "" if report["compiled"] else " at most: temporaries are not counted"
        print(f"rows that fit at once: {report['most_rows']:,}{left_out}")
    if report["fits"] and report["compiled"]:
        print_collectives(report, "one token of these rows")
    if not report["bounds"]:
        print(f"\nno bandwidth is known of {report['device_kind']}, so that no tokens a second are bounded")
        return
    print("\nat most, were all of a chip's bandwidth and products used (caches full):")
    numbers = "rows", "tokens/s", "bytes a token"
    table = table_of(*numbers[:2], "bound by", numbers[2], right=numbers)
    for row in report["bounds"]:
        rate, each = f"{row['tokens_per_second']:,.0f}", gb(row["bytes_per_token"])
        table.add_row(f"  {row['rows']:,}", rate, row["bound_by"], each)
    show(table)


def bounds(found: Decoding, config: Config, chip: Chip | None) -> list[dict[str, Any]]:
    """For batches of every size of `SIZES` that fits: the tokens a second that the machine can make at most,
    and what bounds them on the device with the most rows: memory, whose every weight and cache is read for a
    token, or products. None for a chip that no table has."""
    if chip is None:
        return []
    flops = forward_flops_per_token(config.model)
    shared = found.layout.mesh.size / found.parts  # devices that a row's products are split over
    table = []
    for rows in SIZES:
        if found.most_rows is not None and rows > found.most_rows:
            break
        own = -(-rows // found.parts)
        read = found.weights + own * found.row
        memory = read / (chip.bandwidth / chip.cores)
        products = own * flops / shared / (chip.flops / chip.cores)
        table.append(
            {
                "rows": rows,
                "tokens_per_second": rows / max(memory, products),
                "bound_by": "memory" if memory >= products else "products",
                "bytes_per_token": read / rows,
            }
        )
    return table


def _abstract(config: Config, layout: Layout, weights: str) -> Transformer:
    """The model in its form for inference, without values."""
    dtype = compute_type(config.train.precision, layout)
    whole = layout.without(*BY_TIME)
    compute = inference_compute(Compute(dtype, attention_kernel=config.train.attention_kernel))
    model = Transformer(config.model, whole, compute)
    dims = model.dims()
    mesh = layout.mesh
    with jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, AbstractMesh) else jax.set_mesh(mesh):
        values = {
            name: jax.eval_shape(partial(narrow, dims=dims[name], dtype=dtype, weights=weights), value)
            for name, value in model.stored().items()
        }
    return model.bind(values)


def _rows(graphdef: Any, state: Any, layout: Layout, rows: int, slots: int) -> decode.Rows:
    """The rows of a batch in the middle of its work, without values."""
    config = nnx.merge(graphdef, state).config
    tokens = _like(layout, (rows, min(decode.PREFILL, slots)), np.int32, "batch", "sequence")
    start = _like(layout, (rows,), np.int32, "batch")
    sizes = tuple(sorted({"global": slots, "local": min(slots, config.attention.window)}.items()))
    read = partial(decode._read.__wrapped__, graphdef, slots=sizes)  # type: ignore[attr-defined]
    hidden, caches = jax.eval_shape(read, state, tokens, start)
    column = partial(_like, layout, (rows,))
    asked = Asked(
        limit=column(np.int32, "batch"),
        ends=_like(layout, (rows, ENDS), np.int32, "batch", ""),
        key=_like(layout, (rows, 2), np.uint32, "batch", ""),
        controls=Controls(
            temperature=column(np.float32, "batch"),
            top_k=column(np.int32, "batch"),
            top_p=column(np.float32, "batch"),
            min_p=column(np.float32, "batch"),
            repetition_penalty=column(np.float32, "batch"),
            entmax=column(np.bool_, "batch"),
        ),
    )
    vocab = layout.padded_vocab(config.n_vocab)
    present = _like(layout, (rows, vocab), np.bool_, "batch", "")
    begin = partial(decode._begin.__wrapped__, graphdef)  # type: ignore[attr-defined]
    return jax.eval_shape(begin, state, hidden, caches, start, present, start, asked)


def _like(layout: Layout, shape: tuple[int, ...], dtype: Any, *dims: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=layout.sharding(dims, shape))


def _bytes(tree: Any) -> int:
    """Bytes of one device's part of all arrays."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
    return total
