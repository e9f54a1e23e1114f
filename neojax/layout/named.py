"""Parameters and einsum over named dimensions.

Model code names dimensions and contains no sharding: the names in an equation are looked up in the layout
that is in force (`with use_layout(layout)`), which says how operands and output are laid over the mesh.
On the mesh's Explicit axes the array types carry the layout, so a mistake is an error at trace time.
"""

import contextlib
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from neojax.layout import row_lookup
from neojax.layout.mesh import Layout
from neojax.layout.product import product, product_with_weight

_layout: ContextVar[Layout] = ContextVar("neojax_layout")
_reduce_dtype: ContextVar[Any] = ContextVar("neojax_reduce_dtype", default=jnp.float32)
_drops: ContextVar[jax.Array | None] = ContextVar("neojax_drops", default=None)


@contextlib.contextmanager
def use_layout(layout: Layout, reduce_dtype: Any = jnp.float32) -> Iterator[None]:
    """Puts `layout` in force for the named operations inside; they add up gradients over devices in
    `reduce_dtype` (see `trained`)."""
    token, type_token = _layout.set(layout), _reduce_dtype.set(reduce_dtype)
    try:
        yield
    finally:
        _layout.reset(token)
        _reduce_dtype.reset(type_token)


@contextlib.contextmanager
def dropping(key: jax.Array | None) -> Iterator[None]:
    """Has low-rank additions inside drop a part of what they take, as `LowRank` says, by bits of `key`; None:
    nothing."""
    token = _drops.set(key)
    try:
        yield
    finally:
        _drops.reset(token)


def current_layout() -> Layout:
    """The layout in force."""
    return _layout.get()


@dataclass(frozen=True)
class Normal:
    """Initialiser: an untruncated normal distribution with standard deviation `std`."""

    std: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        return self.std * jax.random.normal(key, shape, jnp.float32, out_sharding=sharding)


@dataclass(frozen=True)
class Uniform:
    """Initialiser: a uniform distribution between -`bound` and `bound`."""

    bound: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        bounds = -self.bound, self.bound
        return jax.random.uniform(key, shape, jnp.float32, *bounds, out_sharding=sharding)


@dataclass(frozen=True)
class Constant:
    """Initialiser: every element is `value`."""

    value: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        return jnp.full(shape, self.value, jnp.float32, device=sharding)


class Param(nnx.Param):
    """A parameter declared by its dimension names; its value is abstract until weights are bound to it.

    `dims` names the dimensions, `sizes` gives their sizes, `init` makes the initial value. Where `sizes` has
    an entry `layers`, the parameter of that many blocks is stacked along a first dimension of that name.
    """

    def __init__(self, dims: str, init: Normal | Constant, sizes: Mapping[str, int]):
        names = ("layers",) * ("layers" in sizes) + tuple(dims.split())
        shape = tuple(sizes[name] for name in names)
        super().__init__(jax.ShapeDtypeStruct(shape, jnp.float32), dims=names, init=init)


class Quantized(NamedTuple):
    """A matrix as int8 `values` times a float32 `scale`, which has size 1 along the dimensions that share
    one."""

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def scaled(self, term: Sequence[str]) -> list[str]:
        """The dimensions of `term`, the names of its own, that have scales of their own."""
        return [name for name, size in zip(term, self.scale.shape) if size > 1]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "a", "b"),
    meta_fields=("scale", "dropout", "seed"),
)
@dataclass(frozen=True)
class LowRank:
    """A matrix with a low-rank addition: `base` plus `scale` times the product of `a` and `b`. Hu et al.
    2021, https://arxiv.org/abs/2106.09685.

    base: an array or `Quantized`; a: the dimensions that products with the matrix sum over, and `rank`; b:
    `rank` and the other dimensions, both arrays. dropout: rate at which elements of what `a` takes are zeroed
    where there is a key (`dropping`); seed: tells the bits of one `a` from those of another.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: float
    dropout: float = 0.0
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> Any:
        return self.a.dtype


def use(value: Param | jax.Array, dims: str, dtype: jnp.dtype | None = None, beside: str = "") -> jax.Array:
    """`value` in its used layout: cast first, then gathered from the stored layout, so that few bytes travel.
    beside: as in `lay`."""
    array = value.get_value() if isinstance(value, nnx.Variable) else value
    if isinstance(array, Quantized):
        values, scale = lay_quantized(array, dims)
        array = values * scale
        return array if dtype is None else array.astype(dtype)
    if dtype is not None:
        array = array.astype(dtype)
    return lay(array, dims, beside)


def trained(value: Param | jax.Array, dims: str, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """(`value` in its used layout and `dtype`, a stand-in for it that takes its gradient).

    A gradient has the type of what it is the gradient of, and in that type it is added up over the devices.
    The stand-in has the type that was asked for (`use_layout`); its own numbers are not used and never
    computed. Where the two types are one, so are the arrays, as for float32 in float32.
    """
    array = value.get_value() if isinstance(value, nnx.Variable) else value
    summed = _reduce_dtype.get()
    if isinstance(array, Quantized) or array.dtype == dtype or summed == dtype:
        used = use(array, dims, dtype)
        return used, used
    return use(jax.lax.stop_gradient(array), dims, dtype), use(array, dims, summed)


def lay_quantized(array: Quantized, dims: str) -> Quantized:
    """`array` in its used layout, its scale split as the numbers it belongs to."""
    own = array.scaled(dims.split())
    scale = " ".join(name if name in own else "one" for name in dims.split())
    return Quantized(lay(array.values, dims), lay(array.scale, scale))


def look_up(table: Param, dims: str, index: jax.Array, out: str, dtype: jnp.dtype) -> jax.Array:
    """Rows of `table` [`dims`] at `index`, laid out as the dimensions `out` and in type `dtype`."""
    value = table.get_value()
    height, width = dims.split()
    *tokens, _ = out.split()
    found, index = sharding(out, height), lay(index, " ".join(tokens), height)
    if not isinstance(value, Quantized):
        if value.dtype == dtype:
            return lay(use(value, dims).at[index].get(out_sharding=found), out)
        layout = current_layout()
        axes = tuple(axis for dim in tokens for axis in layout.axes(dim, beside=[height]))
        split = row_lookup.Split(found, sharding(dims), layout.axes(height), layout.axes(width), axes)
        return lay(row_lookup.look_up(split, *trained(value, dims, dtype), index), out)
    rows, scale = lay_quantized(value, dims)
    scale = scale.at[index].get(out_sharding=sharding(" ".join([*tokens, "one"]), height))
    return lay((rows.at[index].get(out_sharding=found) * scale).astype(dtype), out)


def biased(x: jax.Array, bias: Param | None, dims: str) -> jax.Array:
    """x + `bias` [`dims`], where there is one, in the type of x. They are added in float32, as is then the
    sum over all tokens that is the gradient of the bias."""
    return x if bias is None else (x + use(bias, dims)).astype(x.dtype)


def lay(array: jax.Array, dims: str, beside: str = "") -> jax.Array:
    """`array` laid out as the names of its dimensions say; also renames, since names live in equations only.
    beside: dimensions of what it goes with, to which `sequence` may leave an axis."""
    layout = current_layout()
    sharding = layout.sharding(dims.split(), array.shape, what="an activation", beside=beside.split())
    if jax.typeof(array).sharding.spec == sharding.spec:
        return array
    return jax.reshard(array, sharding)


def reshaped(array: jax.Array, shape: Sequence[int], dims: str) -> jax.Array:
    """`array` with another `shape`, laid out as the names of its new dimensions say."""
    return _reshape(array, shape, sharding(dims))


def picked(hidden: jax.Array, at: jax.Array) -> jax.Array:
    """The tokens of hidden states [batch, sequence, embd] at positions int32 [batch, scored] of their row, as
    [batch, scored, embd]."""
    dims = "batch scored embd", "batch scored"
    specs = tuple(sharding(d).spec for d in dims)

    def own_rows(hidden: jax.Array, at: jax.Array) -> jax.Array:
        return jnp.take_along_axis(hidden, at[..., None], axis=1)

    mesh = current_layout().mesh
    take = jax.shard_map(own_rows, mesh=mesh, in_specs=specs, out_specs=specs[0])
    return take(*(lay(x, d) for x, d in zip((hidden, at), dims)))


def einsum(equation: str, *operands: Param | jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """`jnp.einsum` over dimension names, as in ``"batch sequence embd, embd mlp -> batch sequence mlp"``.

    Operands are brought to their used layout beside all names of the equation, see `lay`; parameters are cast
    to the type of the first operand. The
    output has the layout of its names and the type `dtype` (default: that of the first operand), which is
    also the type that products are accumulated in (see `layout.product`).
    """
    operand_dims, _, result_dims = equation.partition("->")
    terms, out = [term.split() for term in operand_dims.split(",")], result_dims.split()
    first = operands[0].dtype
    values = [x.get_value() if isinstance(x, nnx.Variable) else x for x in operands]
    weight = values[-1]
    if isinstance(weight, LowRank):
        x = values[0]
        y = _product(terms, out, [x, weight.base], True, dtype or first)
        return y + _addition(terms, out, x, weight, dtype or first)
    is_weighed = len(operands) == 2 and isinstance(operands[1], Param)
    return _product(terms, out, values, is_weighed, dtype or first)


def _addition(
    terms: Sequence[list[str]], out: list[str], x: jax.Array, weight: LowRank, dtype: jnp.dtype
) -> jax.Array:
    """What the low-rank part of `weight` adds to its product with `x`."""
    term, own = terms
    if weight.dropout and (key := _drops.get()) is not None:
        x = Dropout(weight.dropout, jax.random.fold_in(key, weight.seed))(x, " ".join(term))
    summed, kept = [n for n in own if n not in out], [n for n in own if n in out]
    narrow = [*(n for n in term if n not in summed), "rank"]
    low = _product([term, [*summed, "rank"]], narrow, [x, weight.a], True, x.dtype)
    y = _product([narrow, ["rank", *kept]], out, [low, weight.b], True, dtype)
    return (weight.scale * y).astype(y.dtype)


def _product(
    terms: Sequence[list[str]], out: list[str], values: Sequence[Any], is_weighed: bool, dtype: jnp.dtype
) -> jax.Array:
    """`einsum` of `values` with dimensions `terms`, the second being a parameter where that is weighed."""
    first, names = values[0].dtype, " ".join({name for term in terms for name in term} | set(out))
    equation = ", ".join(map(" ".join, terms)) + " -> " + " ".join(out)
    arrays, scales, summed = [], [], None
    for term, value in zip(terms, values, strict=True):
        if isinstance(value, Quantized) and set(value.scaled(term)) <= set(out):
            numbers, scale = lay_quantized(value, " ".join(term))
            arrays.append(numbers.astype(first))
            scales.append(broadcast_scale(scale, term, out))
        elif is_weighed and len(arrays) == 1:
            used, stand_in = trained(value, " ".join(term), first)
            arrays.append(used)
            summed = None if stand_in is used else stand_in
        else:
            arrays.append(use(value, " ".join(term), first, names))
    sizes = {name: size for term, a in zip(terms, arrays) for name, size in zip(term, a.shape)}
    shape = [sizes[name] for name in out]
    whole = current_layout().sharding(out, shape, what=f"the result of {equation!r}")
    runs = runs_of([*terms, out])
    letter = dict(zip(runs, string.ascii_letters))

    def join(term: list[str], beside: str = "") -> tuple[list[int], NamedSharding]:
        kept = [name for name in term if name in runs]
        sharding = current_layout().sharding(kept, beside=beside.split())
        return [math.prod(sizes[n] for n in runs[name]) for name in kept], sharding

    arrays = [_reshape(a, *join(term, names)) for a, term in zip(arrays, terms)]
    short = [[letter[name] for name in names if name in runs] for names in (*terms, out)]
    equation = ",".join(map("".join, short[:-1])) + "->" + "".join(short[-1])
    result = join(out)[1]
    if len(arrays) == 2:
        left, right = arrays
        platform = current_layout().platform
        if summed is None:
            y = product(equation, left, right, dtype=dtype, platform=platform, out_sharding=result)
        else:
            stand_in = _reshape(summed, *join(terms[1]))
            kinds = jnp.dtype(dtype), platform, result, stand_in.dtype
            y = product_with_weight(equation, *kinds, left, right, stand_in)
    else:
        y = jnp.einsum(equation, *arrays, out_sharding=result, preferred_element_type=dtype)
    y = _reshape(y, shape, whole)
    for scale in scales:
        y = (y * scale).astype(y.dtype)
    return y


def runs_of(terms: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The names in `terms` in runs, by their first name: names that stand side by side wherever they occur
    are one dimension to a product, and a product of matrices is faster than one of [batch, sequence, embd]. A
    name that is split over the mesh begins a run."""
    after: dict[str, set[str]] = {}
    before: dict[str, set[str]] = {}
    for term in terms:
        for left, right in zip(["", *term], [*term, ""]):
            after.setdefault(left, set()).add(right)
            before.setdefault(right, set()).add(left)
    runs: dict[str, list[str]] = {}
    run: list[str] = []
    for name in dict.fromkeys(name for term in terms for name in term):
        if run and after[run[-1]] == {name} and before[name] == {run[-1]} and not current_layout().axes(name):
            run.append(name)
        else:
            runs[name] = run = [name]
    return runs


def _reshape(array: jax.Array, shape: Sequence[int], sharding: NamedSharding) -> jax.Array:
    return array if array.shape == tuple(shape) else jax.lax.reshape(array, shape, out_sharding=sharding)


def broadcast_scale(scale: jax.Array, term: Sequence[str], out: Sequence[str]) -> jax.Array:
    """`scale`, of the dimensions `term`, so that it broadcasts to the dimensions `out`."""
    kept = [name for name in out if name in term]
    summed = tuple(i for i, name in enumerate(term) if name not in out)
    order = [name for name in term if name in out]
    scale = jnp.squeeze(scale, summed).transpose([order.index(name) for name in kept])
    return jnp.expand_dims(scale, tuple(i for i, name in enumerate(out) if name not in term))


def sharding(dims: str, beside: str = "") -> NamedSharding:
    """The sharding of an activation with dimensions `dims` under the layout in force; beside: as in `lay`."""
    return current_layout().sharding(dims.split(), beside=beside.split())


@dataclass(frozen=True)
class Dropout:
    """Zeroes elements with probability `rate` and scales the others."""

    rate: float
    key: jax.Array

    def __call__(self, x: jax.Array, dims: str) -> jax.Array:
        sharding = current_layout().sharding(dims.split(), x.shape)
        return dropped(x, jax.random.bits(self.key, x.shape, jnp.uint32, out_sharding=sharding), self.rate)


def dropped(x: jax.Array, bits: jax.Array, rate: float) -> jax.Array:
    """x with zeros where `bits`, uint32 of its shape, are among the least, a share `rate` of all there are,
    and the other elements scaled."""
    return jnp.where(bits >= rate * 2**32, x / (1 - rate), 0).astype(x.dtype)
