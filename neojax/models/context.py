"""Where the tokens of a call stand: what a block needs to know of them besides the activations."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from neojax.data.batch import Batch
from neojax.kernels.masks import Branches
from neojax.layout import named


@dataclass(frozen=True)
class Context:
    """The place of a call's tokens in their rows.

    `start` int32 [batch]: the time of each row's first token (padding is on the left), None for 0.
    `time`: int32 scalar, the time of the first token of the call; a Python 0 where no token came before.
    `slots`: the number of cache slots to keep, per attention type; None where there is no cache.
    `segments` int32 [batch, sequence]: the document of each token, 0 for padding; a token sees those of its
    own document alone. None where all tokens of a row are one document.
    `positions` int32 [batch, sequence]: the position of each token, None where it follows from `start` and
    `time`.
    `branches` int32 [batch, sequence]: which branch of its segment each token is of, 0 for the trunk, see
    `data.batch.Batch`; with `positions`. None where no segment has branches.
    `token_types` int32 [batch, sequence]: the row of each token in the table of token types, None for 0.
    """

    start: jax.Array | None = None
    time: jax.Array | int = 0
    slots: Mapping[str, int] | None = None
    segments: jax.Array | None = None
    positions: jax.Array | None = None
    branches: jax.Array | None = None
    token_types: jax.Array | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every row begins with the call's first token, at position 0."""
        return self.positions is None and self.start is None and isinstance(self.time, int) and not self.time

    @staticmethod
    def of(batch: Batch) -> "Context":
        """That of whole rows."""
        return Context(
            segments=batch.segments,
            positions=batch.positions,
            branches=batch.branches,
            token_types=batch.token_types,
        )

    def trees(self) -> Branches | None:
        """The branches of the call's tokens, as attention takes them."""
        if self.branches is None:
            return None
        return Branches(self.branches, self.token_positions(self.branches.shape[1]))

    def token_positions(self, length: int) -> jax.Array:
        """The positions of the call's `length` tokens: int32 [sequence], or [batch, sequence] where rows
        differ."""
        if self.positions is not None:
            return named.lay(self.positions, "batch sequence")
        time = self.time + jnp.arange(length)
        if self.start is None:
            return time
        return named.lay(jnp.maximum(time - self.start[:, None], 0), "batch sequence")
