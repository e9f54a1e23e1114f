"""What a model reports of a batch: every head, every expert and every objective in the same way."""

from typing import NamedTuple

import jax

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), scalars. What a block reports as "objective" is added to the objective."""


class Losses(NamedTuple):
    """`objective`: a scalar, summed over what is scored, whose gradient trains. `sums`: name -> (sum, count),
    whose ratio is a metric; "loss" is among them, in nats over scored tokens, and its count is what the
    objective is divided by."""

    objective: jax.Array
    sums: Sums

    @property
    def nats(self) -> jax.Array:
        """The negative log-likelihood of the scored tokens."""
        return self.sums["loss"][0]

    @property
    def scored(self) -> jax.Array:
        """The number of scored tokens, float32."""
        return self.sums["loss"][1]

    def plus(self, sums: Sums) -> "Losses":
        """These, and what the blocks of the stack reported."""
        objective = self.objective + sums["objective"][0] if "objective" in sums else self.objective
        others = {name: pair for name, pair in sums.items() if name != "objective"}
        return Losses(objective, {**self.sums, **others})
