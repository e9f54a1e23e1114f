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

from neojax.config import Config
from neojax.layout.chips import chip_of
from neojax.layout.mesh import Layout, make_layout
from neojax.models import Transformer
from neojax.models.compute import Compute, compute_type
from neojax.models.flops import forward_flops_per_token
from neojax.models.inference import BY_TIME, inference_compute, inference_layout
from neojax.models.matrices import narrow
from neojax.plan.compiled import Compiled, compiled_of
from neojax.plan.report import gb, of_program, print_collectives, print_machine, print_memory, show, table_of
from neojax.sampling import decode
from neojax.sampling.decode import Asked
from neojax.sampling.logits import Controls

ROWS = 8  # of each part of the batch, in the program that is compiled
ENDS = 1
SIZES = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Decoding:
    """A compiled step of the sampler, for `rows` rows whose caches have room for `slots` tokens. On one
    device: weights: their bytes; row: bytes of a row's caches; other: bytes that a row takes beside them."""

    one: Compiled
    rows: int
    slots: int
    weights: int
    row: float
    other: float

    @property
    def most_rows(self) -> int | None:
        """Rows that fit on the machine at once; None where it is not told what memory it has."""
        if self.one.available is None:
            return None
        left = self.one.available - self.weights
        return max(0, int(left / (self.row + self.other)))


def compile_decoding(
    config: Config, devices: Sequence[jax.Device] | None, weights: str = "auto", quick: bool = False
) -> Decoding:
    """Compiles one token of sampling from the model of `config`, on the mesh of `config` over `devices`
    (default: those here), with matrices kept as `weights` (see `neojax.load`). Raises `NeojaxError` where the
    layout does not fit."""
    layout = inference_layout(make_layout(config.mesh, devices))
    model = _abstract(config, layout, weights)
    layout = model.layout
    rows, slots = ROWS * layout.split("batch"), config.model.n_ctx
    with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
        graphdef, state = nnx.split(model)
        begun = _rows(graphdef, state, layout, rows, slots)
        scalar = _like(layout, (), np.int32)
        done = _like(layout, (rows,), np.bool_, "batch")
        lowered = decode._decode.lower(graphdef, state, begun, scalar, done, 1)
    sizes = {
        "batch": ROWS,
        "heads": config.model.attention.heads // layout.split("heads"),
        "sequence": slots,
        "head_dim": config.model.head_dim,
        "embd": config.model.n_embd // layout.split("embd"),
        "mlp": config.model.mlp_dim // layout.split("mlp"),
        "vocab": layout.padded_vocab(config.model.n_vocab) // layout.split("vocab"),
    }
    one = compiled_of(lowered, model, layout, list(sizes.items()), quick)
    held, caches = _bytes(state), _bytes(begun.caches)
    needed = one.memory.needed if one.memory else held + caches
    return Decoding(one, rows, slots, held, caches / rows, max(0.0, needed - held - caches) / rows)


def of_decoding(config: Config, topology: str, found: Decoding) -> dict[str, Any]:
    """What `neojax plan --decode` says, as one dictionary. Bytes, unless a name says otherwise."""
    return {
        **of_program(config, topology, found.one),
        "rows": found.rows,
        "slots": found.slots,
        "weights_per_device": found.weights,
        "cache_per_row": found.row,
        "beside_cache_per_row": found.other,
        "most_rows": found.most_rows,
        "bounds": bounds(found, config),
    }


def print_decoding(report: Mapping[str, Any]) -> None:
    """A report of `of_decoding` as a person reads it."""
    print_machine(report)
    print_memory(report, f"one token of {report['rows']} rows, ")
    cache, beside = gb(report["cache_per_row"]), gb(report["beside_cache_per_row"])
    print(
        f"\non one device: weights {gb(report['weights_per_device'])}; of every row, with "
        f"{report['slots']:,} tokens, a cache of {cache} and {beside} beside it"
    )
    if report["most_rows"] is not None:
        print(f"rows that fit at once: {report['most_rows']:,}")
    if report["fits"]:
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


def bounds(found: Decoding, config: Config) -> list[dict[str, Any]]:
    """For batches of every size of `SIZES` that fits: the tokens a second that the machine can make at most,
    and what bounds them: memory, whose every weight and cache is read for a token, or products."""
    chip = chip_of(found.one.layout.device)
    if chip is None:
        return []
    flops = forward_flops_per_token(config.model)
    devices = found.one.layout.mesh.size
    table = []
    for rows in SIZES:
        if found.most_rows is not None and rows > found.most_rows:
            break
        memory = (found.weights + rows * found.row) / (chip.bandwidth / chip.cores)
        products = rows * flops / devices / (chip.flops / chip.cores)
        table.append(
            {
                "rows": rows,
                "tokens_per_second": rows / max(memory, products),
                "bound_by": "memory" if memory >= products else "products",
                "bytes_per_token": (found.weights + rows * found.row) / rows,
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
    with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
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
