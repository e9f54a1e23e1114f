"""A parameter as optimizers see it: a variable for every layer, without the padding of its vocabulary."""

import math

import jax
import jax.numpy as jnp

Axes = tuple[int, ...]


class TrueShape:
    """The sides of a parameter without the padding of its vocabulary, and means over the entries within."""

    def __init__(self, dims: tuple[str, ...], shape: tuple[int, ...], n_vocab: int | None):
        self.dims = dims
        self.vocab = dims.index("vocab") if "vocab" in dims else None
        self.true: jax.Array | None = (
            None  # which entries are no padding, where some are; of the parameter's rank
        )
        self.shape = list(shape)
        if self.vocab is not None and n_vocab is not None and n_vocab < shape[self.vocab]:
            index = jnp.arange(shape[self.vocab])
            self.true = jnp.expand_dims(index < n_vocab, [i for i in range(len(shape)) if i != self.vocab])
            self.shape[self.vocab] = n_vocab

    def sides(self) -> tuple[Axes, Axes]:
        """The axes of the second longest side and of the longest, for a parameter of at least two."""
        a, b = self._by_length()[-2:]
        return a, b

    def is_long(self, least: int) -> bool:
        """Whether both of these have at least `least` entries, and there are two."""
        sides = self._by_length()
        return len(sides) > 1 and self._length(sides[-2]) >= least

    def mean(self, x: jax.Array, axes: Axes, keepdims: bool = False) -> jax.Array:
        """The mean of `x`, of the parameter's rank, over `axes`."""
        return jnp.mean(x, axes, keepdims=keepdims, where=self.true if self.vocab in axes else None)

    def without_padding(self, x: jax.Array) -> jax.Array:
        return x if self.true is None else jnp.where(self.true, x, 0.0)

    def rms(self, x: jax.Array) -> jax.Array:
        """The root of the mean square of every layer's entries, of the parameter's rank."""
        axes = tuple(i for i, d in enumerate(self.dims) if d != "layers")
        return jnp.sqrt(self.mean(jnp.square(x), axes, keepdims=True))

    def _by_length(self) -> list[Axes]:
        # Memory keys and values are variables whose heads are an axis of their own.
        joined = "memory_slots" not in self.dims
        sides: dict[str, Axes] = {}
        for axis, dim in enumerate(self.dims):
            if dim != "layers":
                side = "heads" if dim in ("head_dim", "kv_heads") and joined else dim
                sides[side] = (*sides.get(side, ()), axis)
        return sorted(sides.values(), key=self._length)

    def _length(self, side: Axes) -> int:
        return math.prod(self.shape[axis] for axis in side)
