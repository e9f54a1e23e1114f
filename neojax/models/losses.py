"""What a model reports of a batch: every head, every expert and every objective in the same way."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), scalars, or both vectors where a block reports of itself alone: the stack makes a row
of each. What a block reports as "objective" is added to the objective, what it reports as "mean_objective" to
the objective's mean over what is scored."""

OBJECTIVES = ("objective", "mean_objective")


class Losses(NamedTuple):
    """`objective`: a scalar, summed over what is scored, whose gradient trains. `sums`: name -> (sum, count),
    whose ratio is a metric; "loss" is among them, in nats over scored tokens (of a classifier, what its loss
    is over), and its count is what the objective is divided by. `others`: objectives of further heads, (sum,
    count) by the name of their loss, whose means are added to that of the first."""

    objective: jax.Array
    sums: Sums
    others: Sums = {}  # noqa: RUF012 - never changed

    @property
    def nats(self) -> jax.Array:
        """The negative log-likelihood of the scored tokens."""
        return self.sums["loss"][0]

    @property
    def scored(self) -> jax.Array:
        """The number of scored tokens, float32."""
        return self.sums["loss"][1]

    def total(self, scored: Mapping[str, jax.Array] | None = None) -> jax.Array:
        """What is trained: every objective, scaled so that division by the count of "loss" makes each the
        mean over what it scored. scored: these counts by the name of their loss, where a batch is one of
        several whose totals are added; default: this batch's own."""
        counts = {name: count for name, (_, count) in {**self.sums, **self.others}.items()}
        counts |= scored or {}
        own = self.objective
        for name, (objective, _) in self.others.items():
            own = own + objective * (at_least_some(counts["loss"]) / at_least_some(counts[name]))
        return own

    def plus(self, sums: Sums) -> "Losses":
        """These, and what the blocks of the stack reported."""
        objective = self.objective
        if "objective" in sums:
            objective = objective + sums["objective"][0]
        if "mean_objective" in sums:
            objective = objective + sums["mean_objective"][0] * self.scored
        others = {name: pair for name, pair in sums.items() if name not in OBJECTIVES}
        return Losses(objective, {**self.sums, **others}, self.others)


def added(parts: Sequence[Sums]) -> Sums:
    """The sums of several blocks in their order: scalars are added, vectors become rows of a matrix."""
    found: Sums = {}
    for part in parts:
        for name, pair in part.items():
            total, count = (x[None] if x.ndim == 1 else x for x in pair)
            if name in found and total.ndim:
                total, count = (jnp.concatenate(both) for both in zip(found[name], (total, count)))
            elif name in found:
                total, count = found[name][0] + total, found[name][1] + count
            found[name] = total, count
    return found


def at_least_some(count: jax.Array) -> jax.Array:
    """`count` to divide by: 1 where nothing is scored, and the sum is 0."""
    return jnp.where(count > 0, count, 1.0)
