"""Rows that are split over devices: the part of each, and how causal work on it is balanced.

A row of n parts is cut into 2 n pieces, and device i works on pieces i and 2 n - 1 - i, the early and the
late one, so that all devices have as many pairs of a query and a key that it sees:
https://arxiv.org/abs/2311.09431.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Parts(NamedTuple):
    """How rows lie on the devices: `axes` of the mesh split them into `number` parts; of each, `halves`
    pieces are worked on: 2 where work is balanced, else 1, the part itself."""

    axes: tuple[str, ...]
    number: int
    halves: int

    def own(self) -> jax.Array:
        """The number of the device's part."""
        return jax.lax.axis_index(self.axes)

    def times(self, part: jax.Array, half: jax.Array | int, size: int) -> jax.Array:
        """The times of the `size` tokens of a part's piece."""
        number = part if self.halves == 1 else jnp.where(half == 0, part, 2 * self.number - 1 - part)
        return number * size + jnp.arange(size)

    def sent(self, x: Any, hops: int = 1) -> Any:
        """Arrays of every device on the one that comes so many `hops` after it."""
        way = [(i, (i + hops) % self.number) for i in range(self.number)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axes, way), x)

    def _ways(self) -> list[list[tuple[int, int]]]:
        """Where the first pieces of all parts go, and where the second do: the early pieces come to even
        parts by the first way, to odd ones by the second."""
        last = 2 * self.number - 1
        return [[(i, min(2 * i + j, last - 2 * i - j)) for i in range(self.number)] for j in (0, 1)]

    def taken_apart(self, x: jax.Array) -> jax.Array:
        """A part of rows [batch, tokens, ...] -> the pieces to work on [halves, batch, tokens, ...]."""
        if self.halves == 1:
            return x[None]
        size = x.shape[1] // 2
        first, second = (
            jax.lax.ppermute(own, self.axes, way)
            for own, way in zip((x[:, :size], x[:, size:]), self._ways())
        )
        return jnp.stack(self._by_age(first, second))

    def joined(self, x: jax.Array) -> jax.Array:
        """The other way round."""
        if self.halves == 1:
            return x[0]
        back = ([(there, here) for here, there in way] for way in self._ways())
        pieces = zip(self._by_age(x[0], x[1]), back)
        return jnp.concatenate([jax.lax.ppermute(own, self.axes, way) for own, way in pieces], axis=1)

    def _by_age(self, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
        is_even = self.own() % 2 == 0
        return jnp.where(is_even, first, second), jnp.where(is_even, second, first)
