"""Weights from files onto the mesh, piece by piece: one layer of one parameter at a time, and of that each device's part.

Host memory stays within one such piece and a constant, whatever the size of the model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from neojax.models import Transformer

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """One layer of a parameter, or a parameter that is not stacked.

    `param`: its name in the model; `repeat`: its place along the dimension `layers`, None where there is none;
    `role`: its name within the layer (attn.query), or the parameter's; `layer`: the number of its layer or None.
    `dims` and `shape` are without `layers`, and the shape is without padding of the vocabulary.
    """

    param: str
    repeat: int | None
    role: str
    layer: int | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]


def pieces(model: Transformer) -> Iterator[Piece]:
    """All pieces of `model`, those of one parameter together, in the order of `params()`."""
    params, group = model.params(), len(model.blocks)
    for name, dims in model.dims().items():
        shape = params[name].shape
        sizes = [model.config.n_vocab if d == "vocab" else s for d, s in zip(dims, shape) if d != "layers"]
        inner = tuple(d for d in dims if d != "layers")
        if not name.startswith("blocks."):
            yield Piece(name, None, name, None, inner, tuple(sizes))
            continue
        _, block, role = name.split(".", 2)
        if "layers" not in dims:
            yield Piece(name, None, role, int(block), inner, tuple(sizes))
            continue
        for repeat in range(shape[0]):
            yield Piece(name, repeat, role, repeat * group + int(block), inner, tuple(sizes))


def place(model: Transformer, read: Callable[[Piece, Index], np.ndarray]) -> Transformer:
    """`model` with the weights that `read` gives, float32, in the stored layout; padding of the vocabulary is zero.

    `read(piece, index)` returns the part `index` (slices with bounds, within `piece.shape`) of a piece.
    """
    stored = model.stored()
    params: dict[str, jax.Array] = {}
    for piece in pieces(model):
        spec = stored[piece.param]
        if piece.repeat is None:
            params[piece.param] = _piece(piece, spec.shape, spec.sharding, read)
        else:
            part = NamedSharding(spec.sharding.mesh, PartitionSpec(*spec.sharding.spec[1:]))
            value = _piece(piece, spec.shape[1:], part, read)
            stack = params.pop(piece.param, None)
            if stack is None:
                stack = jnp.zeros(spec.shape, jnp.float32, device=spec.sharding)
            params[piece.param] = _set(stack, value, piece.repeat)
        # Transfers run in the background: without waiting, the pieces in flight would add up to the model.
        jax.block_until_ready(params[piece.param])
    return model.bind(params)


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


@partial(jax.jit, donate_argnums=0)
def _set(stack: jax.Array, value: jax.Array, repeat: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, value, repeat, 0)
