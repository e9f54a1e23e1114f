"""Weights from files onto the mesh, piece by piece: one layer of one parameter at a time, and of that each
device's part.

Host memory stays within one such piece and a constant, whatever the size of the model.
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from neojax.layout.named import Normal
from neojax.models import Transformer
from neojax.models.initial import initial
from neojax.models.pieces import Piece, by_param

Index = tuple[slice, ...]
Narrow = Callable[[str, tuple[str, ...], jax.Array], Any]
"""(name, dimensions, value) of a parameter -> what is kept of it."""


def place(
    model: Transformer,
    read: Callable[[Piece, Index], np.ndarray],
    narrow: Narrow = lambda name, dims, value: value,
) -> Transformer:
    """`model` with the weights that `read` gives, float32, in the stored layout; padding of the vocabulary is
    zero.

    `read(piece, index)` returns the part `index` (slices with bounds, within `piece.shape`) of a piece. What
    is kept of a parameter is what `narrow(its name, its dimensions, value)` makes of it.
    """
    stored, dims = model.stored(), model.dims()
    params: dict[str, Any] = {}
    for name, own in by_param(model).items():
        spec = stored[name]
        value: Any = None
        for piece in own:
            axes = [dims[name].index(dim) for dim, _ in piece.at]
            kept = [i for i in range(len(spec.shape)) if i not in axes]
            parts = PartitionSpec(
                *(spec.sharding.spec[i] if i < len(spec.sharding.spec) else None for i in kept)
            )
            part = NamedSharding(spec.sharding.mesh, parts)
            found = _piece(piece, tuple(spec.shape[i] for i in kept), part, read)
            if not axes:
                value = found
                continue
            if value is None:
                value = jnp.zeros(spec.shape, jnp.float32, device=spec.sharding)
            value = _set(value, found, tuple(index for _, index in piece.at), tuple(axes))
            # Transfers run in the background: without waiting, the pieces in flight would add up to the
            # model.
            jax.block_until_ready(value)
        params[name] = jax.block_until_ready(narrow(name, dims[name], value))
    return model.bind(params)


class Fresh:
    """Initial values of parameters that no file has, the same for every mesh and as `seed` has them."""

    def __init__(self, model: Transformer, seed: int = 0):
        self._seed = seed
        named = model.named_params()
        self._draws = {name: initial(model.config, param.dims, param.init) for name, param in named}

    def read(self, piece: Piece, index: Index) -> np.ndarray:
        """The part `index` of a piece, as `place` reads it."""
        draw = self._draws[piece.param]
        if not isinstance(draw, Normal):
            return np.full(piece.shape, draw.value, np.float32)[index]
        rng = np.random.default_rng((self._seed, zlib.crc32(f"{piece.role} {piece.layer}".encode())))
        return (draw.std * rng.normal(size=piece.shape)).astype(np.float32)[index]


def _piece(
    piece: Piece, shape: tuple[int, ...], sharding: NamedSharding, read: Callable[[Piece, Index], np.ndarray]
) -> jax.Array:
    """A piece as an array of `shape`, which may have more of the vocabulary than the piece has."""
    parts: dict[tuple, np.ndarray] = {}  # devices that hold the same part share it

    def part(index: Index | None) -> np.ndarray:
        assert index is not None
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index, shape))
        if bounds not in parts:
            inside = [(min(a, size), min(b, size)) for (a, b), size in zip(bounds, piece.shape)]
            data = np.asarray(read(piece, tuple(slice(a, b) for a, b in inside)), np.float32)
            padding = [(0, (b - a) - have) for (a, b), have in zip(bounds, data.shape)]
            parts[bounds] = np.pad(data, padding) if any(after for _, after in padding) else data
        return parts[bounds]

    return jax.make_array_from_callback(shape, sharding, part, dtype=jnp.float32)


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def _set(whole: jax.Array, value: jax.Array, at: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    """`whole` with `value` as its entry `at` along `axes`, which are rising."""
    start = [0] * whole.ndim
    for axis, index in zip(axes, at):
        start[axis] = index
        value = jnp.expand_dims(value, axis)
    return jax.lax.dynamic_update_slice(whole, value, start)
