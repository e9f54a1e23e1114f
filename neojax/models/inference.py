"""The one form of weights that scoring, prefill and decoding all use.

Every layer has parameters of its own, with queries, keys and values joined, so that products are as large as
they can be and nothing is sliced out of a stack for each token; matrices are kept in the type that is
computed in, or narrower, in the layout in which they are used, so that nothing is cast or gathered again at
every step. There is one copy of them.

Narrower are bfloat16, or int8 with a scale for every output channel: products read the narrow numbers and
scale their result, so that a whole matrix in the compute type never exists (`layout.named.einsum`).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from neojax.arguments import wrong
from neojax.layout.mesh import Layout
from neojax.layout.named import LowRank
from neojax.models.adapters import B
from neojax.models.compute import Compute
from neojax.models.matrices import SUMMED, narrow
from neojax.models.pieces import Piece, by_param, pieces
from neojax.models.transformer import Transformer

WEIGHTS = ("float32", "bfloat16", "int8")

BY_TIME = ("sequence", "memory_length", "positions", "axial_rows", "axial_columns")
"""The dimensions that tokens in their order run over, which decoding one at a time does not split."""


def for_inference(model: Transformer, weights: str = "auto") -> Transformer:
    """`model` in the form for inference, its matrices as `weights`: float32, bfloat16, int8, or auto, the
    type in which the model computes. A model that has that form is given back as it is. Raises `NeojaxError`
    for other `weights`.
    """
    check_weights(weights)
    compute = model.compute
    if compute.joined and not compute.stacked and weights == "auto":
        return model
    return converted(model, model.params(), weights)


def converted(model: Transformer, params: dict[str, Any], weights: str = "auto") -> Transformer:
    """As `for_inference`, of `model` with the values `params`, which are removed one by one as they are
    converted: beside both forms of one parameter no memory is needed but that of the new form."""
    layout = inference_layout(model.layout)
    target = Transformer(model.config, layout, inference_compute(model.compute))
    specs, dims, found = target.stored(), target.dims(), {(p.role, p.layer): p for p in pieces(model)}
    sources = {name: [found[p.role, p.layer] for p in own] for name, own in by_param(target).items()}
    uses: dict[str, int] = defaultdict(int)
    for own in sources.values():
        for piece in own:
            uses[piece.param] += 1
    all_dims, values = model.dims(), {}
    for name, own in sources.items():
        parts = tuple(params[piece.param] for piece in own)
        at = tuple(tuple(index for _, index in piece.at) for piece in own)
        fixed = tuple(tuple(all_dims[piece.param].index(dim) for dim, _ in piece.at) for piece in own)
        axis = dims[name].index("projections") if len(own) > 1 else None
        values[name] = _assembled(parts, at, fixed, axis, specs[name].shape, specs[name].sharding)
        values[name] = narrow(values[name], dims[name], target.compute.dtype, weights)
        if model.adapters is not None:
            values[name] = _with_addition(values[name], dims[name], own, model, params, target.layout)
        for piece in own:
            uses[piece.param] -= 1
            if not uses[piece.param]:
                params.pop(piece.param, None)
        del parts
        jax.block_until_ready(
            values[name]
        )  # else what is under way would add up to a second copy of the model
    return target.bind(values).accompanied(
        model.tokenizer, model.eos_token_id, model.first_tokens, model.mask_token_id
    )


def _with_addition(
    value: Any,
    dims: tuple[str, ...],
    own: list[Piece],
    model: Transformer,
    params: Mapping[str, jax.Array],
    layout: Layout,
) -> Any:
    """The matrix `value` with what is added to the pieces that it is made of, if there is anything. Where
    they do not share one `lora_a`, those of all are side by side, and each row of `lora_b` reads its own."""
    assert model.adapters is not None
    adapters, of = model.adapters, dict(model.adapters.matrices)
    names = list(dict.fromkeys(of[piece.param] for piece in own if piece.param in of))
    if not names:
        return value
    summed = SUMMED[dims]
    kept = tuple(dim for dim in dims if dim not in summed)
    rank = adapters.rank * len(names)
    shapes = (
        [n for dim, n in zip(dims, value.shape) if dim in summed],
        [n for dim, n in zip(dims, value.shape) if dim in kept],
    )
    a = layout.sharding((*summed, "rank"), (*shapes[0], rank), stored=True)
    b = layout.sharding(("rank", *kept), (rank, *shapes[1]), stored=True)
    readers = tuple(None if piece.param not in of else names.index(of[piece.param]) for piece in own)
    parts = [params[name] for name in names], [params.get(piece.param + B) for piece in own]
    axis = None if len(own) == 1 else 1 + kept.index("projections")
    layer = dict(own[0].at).get("layers")
    beside, joined = _side_by_side(*parts, layer, readers, axis, a, b)
    return LowRank(value, beside, joined, adapters.scale)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _side_by_side(
    a: list[jax.Array],
    b: list[jax.Array | None],
    layer: int | None,
    readers: tuple[int | None, ...],
    axis: int | None,
    a_sharding: NamedSharding,
    b_sharding: NamedSharding,
) -> tuple[jax.Array, jax.Array]:
    """The entries `layer` of several `lora_a`, beside each other, and those of several `lora_b`, the ones
    behind the others along a new `axis`; each reads the `lora_a` of the number in `readers`, or none."""

    def entry(array: jax.Array) -> jax.Array:
        array = jax.reshard(array, NamedSharding(a_sharding.mesh, jax.P()))
        return array if layer is None else jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)

    rows = {i: entry(each) for i, each in enumerate(b) if each is not None}
    rank, *shape = next(iter(rows.values())).shape
    whole = jnp.zeros((rank * len(a), *shape))
    found = [
        whole if number is None else whole.at[rank * number : rank * (number + 1)].set(rows[i])
        for i, number in enumerate(readers)
    ]
    joined = found[0] if axis is None else jnp.stack(found, axis)
    beside = jnp.concatenate([entry(each) for each in a], -1)
    return jax.reshard(beside, a_sharding), jax.reshard(joined, b_sharding)


def inference_layout(layout: Layout) -> Layout:
    """`layout` with parameters stored as decoding uses them."""
    return replace(layout, stored=layout.without(*BY_TIME).used)


def inference_compute(compute: Compute) -> Compute:
    """`compute` for parameters in the form for inference."""
    return replace(compute, stacked=False, joined=True, remat="none")


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _assembled(
    parts: tuple[Any, ...],
    at: tuple[tuple[int, ...], ...],
    fixed: tuple[tuple[int, ...], ...],
    axis: int | None,
    shape: tuple[int, ...],
    sharding: NamedSharding,
) -> Any:
    """The entries `at` along the dimensions `fixed` of `parts`, joined along a new `axis`, laid out as
    `sharding`, without what pads the vocabulary beyond `shape`: how weights are stored may split it where
    their use does not."""

    def entry(array: jax.Array, at: tuple[int, ...], fixed: tuple[int, ...]) -> jax.Array:
        for dim, index in sorted(zip(fixed, at), reverse=True):
            if jax.typeof(array).sharding.spec[dim] is None:
                array = jax.lax.dynamic_index_in_dim(array, index, dim, keepdims=False)
            else:  # layers of a pipeline: the entry comes from the devices that have it
                is_it = jnp.expand_dims(
                    jnp.arange(array.shape[dim]) == index, [i for i in range(array.ndim) if i != dim]
                )
                array = jnp.sum(jnp.where(is_it, array, 0), dim, dtype=array.dtype)
        return array

    def joined(*arrays: jax.Array) -> jax.Array:
        found = [entry(*each) for each in zip(arrays, at, fixed)]
        array = found[0] if axis is None else jnp.stack(found, axis)
        sizes = tuple(map(min, array.shape, shape))  # a scale of int8 has size 1 along what is summed
        spec = [part if size > 1 else None for part, size in zip(sharding.spec, sizes)]
        if sizes != array.shape:
            whole = (part if size == old else None for part, size, old in zip(spec, sizes, array.shape))
            array = jax.reshard(array, NamedSharding(sharding.mesh, jax.P(*whole)))
            array = jax.lax.slice(array, (0,) * array.ndim, sizes)
        return jax.reshard(array, NamedSharding(sharding.mesh, jax.P(*spec)))

    return jax.tree.map(joined, *parts)


def check_weights(weights: str) -> None:
    """Raises `NeojaxError` for a type that weights cannot be kept in."""
    if not isinstance(weights, str) or weights not in ("auto", *WEIGHTS):
        raise wrong("weights", weights, f"auto, {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}")
