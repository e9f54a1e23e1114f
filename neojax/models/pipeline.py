"""A pipeline: stages of layers on devices of their own, through which microbatches pass one after another.

The stages are a dimension of the arrays, split over the mesh: in one tick every device applies its own layers
to what it holds (`jax.vmap`), then what it made goes on to the next stage (a collective-permute). With
several rounds the last stage hands on to the first, whose further layers follow: a microbatch goes round as
often, ticks are as much shorter, and of these as many as before find some stages idle. GPipe,
https://arxiv.org/abs/1811.06965; the circular schedule: Narayanan et al. 2021,
https://arxiv.org/abs/2104.04473, section 2.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from neojax.config import ModelConfig, TrainConfig
from neojax.errors import NeojaxError
from neojax.layout import named
from neojax.layout.each_device import over_stages
from neojax.layout.mesh import Layout
from neojax.models.compute import Compute
from neojax.models.losses import Sums


class Place(NamedTuple):
    """What a stage works on: the microbatch, in which of its rounds, and whether there is one or the stage
    waits."""

    microbatch: Any
    round: Any
    is_real: Any


@dataclass(frozen=True)
class Schedule:
    """When a stage is at which microbatch. As many microbatches as there are stages go all their rounds, then
    the next as many follow, without a gap."""

    stages: int
    rounds: int
    microbatches: int

    @property
    def ticks(self) -> int:
        """Turns of all stages, each as long as a stage takes for the layers of one round."""
        full, rest = divmod(self.microbatches - 1, self.stages)
        return (full * self.rounds + self.rounds - 1) * self.stages + rest + self.stages

    @property
    def bubble(self) -> float:
        """The share of the ticks in which a stage does nothing of use."""
        return 1 - self.microbatches * self.rounds / self.ticks

    def place(self, since: Any) -> Place:
        """What a stage does `since` ticks after its first."""
        turn, index = since // self.stages, since % self.stages
        microbatch = turn // self.rounds * self.stages + index
        is_real = (since >= 0) & (microbatch < self.microbatches)
        return Place(
            jnp.clip(microbatch, 0, self.microbatches - 1), jnp.maximum(turn, 0) % self.rounds, is_real
        )


def check(model: ModelConfig, layout: Layout, compute: Compute, turn: tuple[str, ...], repeats: int) -> None:
    """Raises `NeojaxError` where the layers of `model`, `repeats` times a `turn` of kinds, cannot be split
    into stages as `layout` says."""
    rounds = compute.rounds
    if not (axes := layout.axes("layers")):
        if rounds > 1:
            raise NeojaxError(
                f"train.pipeline_rounds={rounds} is for layers split into stages; add layers:AXIS to "
                "mesh.layout, or leave it out"
            )
        return
    stages = layout.split("layers")
    given = f"mesh.layout splits layers over {'+'.join(axes)} ({stages} stages)"
    if model.share_parameters:
        raise NeojaxError(
            f"{given}, but with model.share_parameters=true layers have the same weights; leave layers out"
        )
    if rounds > 1 and compute.remat == "none":
        raise NeojaxError(
            f"train.pipeline_rounds={rounds} with train.remat=none would keep weights for every tick; set "
            "train.remat=names, or full to save more"
        )
    layout.spec(("layers", "batch", "sequence", "embd"), what="the activations of the stages")
    if repeats % (stages * rounds):
        plural = "s" * (repeats > 1)
        group = (
            f"layer{plural}" if len(turn) == 1 else f"group{plural} of {len(turn)} layers ({', '.join(turn)})"
        )
        each = f" of {rounds} rounds (train.pipeline_rounds)" if rounds > 1 else ""
        fitting = [n for n in range(2, repeats // rounds + 1) if repeats % (n * rounds) == 0]
        fewer = [n for n in range(1, rounds) if repeats % (stages * n) == 0]
        ways = [f"{_one_of(fitting)} stages"] if fitting else []
        ways += [f"train.pipeline_rounds={n}" for n in fewer[-1:]]
        mend = f"{' or '.join(ways)} would do" if ways else "leave layers out"
        raise NeojaxError(f"{given}{each}, which does not divide the model's {repeats} {group}; {mend}")


def check_microbatches(train: TrainConfig, layout: Layout) -> None:
    """Raises `NeojaxError` where a batch has fewer microbatches than the layout has stages."""
    rows, stages = train.microbatch or train.batch_size, layout.split("layers")
    count = train.batch_size // rows
    if count >= stages:
        return
    parts = layout.split("batch")
    fitting = [n for n in range(parts, rows, parts) if train.batch_size % n == 0]
    fitting = [n for n in fitting if train.batch_size // n >= stages]
    mend = (
        f"set train.microbatch={fitting[-1]}"
        if fitting
        else f"raise train.batch_size to {stages * parts} or a multiple, with train.microbatch={parts}"
    )
    raise NeojaxError(
        f"train.microbatch={train.microbatch} makes {count} microbatch{'es' * (count > 1)} of a batch of "
        f"{train.batch_size}, too few for {stages} stages of layers; {mend}"
    )


def describe(schedule: Schedule) -> str:
    """One line on the schedule."""
    rounds = f", {schedule.rounds} rounds" if schedule.rounds > 1 else ""
    return (
        f"pipeline of {schedule.stages} stages, {schedule.microbatches} microbatches{rounds}: a stage waits "
        f"{schedule.bubble:.1%} of the time (the bubble)"
    )


def _one_of(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def run(
    stage: Callable[..., tuple[jax.Array, Sums]],
    schedule: Schedule,
    weights: Any,
    x: jax.Array,
    rows: Any,
    policy: Any = None,
) -> tuple[jax.Array, Sums]:
    """x [microbatches, batch, sequence, embd] after all stages, and what their blocks reported.

    stage: (weights, its number, the round, x, rows) -> (x, sums), of one stage and one microbatch. weights:
    arrays [layers, ...], layers split over the mesh as stages are; a stage gets [layers / (stages * rounds),
    ...].
    rows: arrays [microbatches, ...], of which a stage gets those of its microbatch. policy: what a tick of
    several rounds keeps for the backward pass, see `compute.STAGE_POLICIES`.
    """
    layout = named.current_layout()
    mesh, axes = layout.mesh, layout.axes("layers")
    stages, rounds = schedule.stages, schedule.rounds
    last = stages - 1
    forward = [(i, (i + 1) % stages) for i in range(stages)]
    each, held = P(axes), jax.typeof(x).sharding.spec
    several, one = P(axes, *held), P(axes, *held[1:])

    def own(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

    def entering(fresh, y, microbatch, enters):
        y = jax.lax.ppermute(y, axes, forward)
        return jax.lax.select(enters[0], fresh[:, microbatch[0]], y)

    def leaving(done, y, microbatch, leaves):
        old = done[:, microbatch[0]]
        return done.at[:, microbatch[0]].set(jax.lax.select(leaves[0], y, old))

    enter = own(entering, (several, one, each, each), one)
    leave = own(leaving, (several, one, each, each), several)
    weights = jax.tree.map(lambda w: _by_round(w, stages, rounds, mesh, axes), weights)

    def picked(tree: Any, index: jax.Array, dim: int) -> Any:
        """Of arrays [stages, ...] or, with dim 0, of those that all stages have, the entry of each stage."""

        def entry(array: jax.Array) -> jax.Array:
            spec = jax.typeof(array).sharding.spec
            rest = P(axes, *spec[dim + 1 :])

            def take(array: jax.Array, index: jax.Array) -> jax.Array:
                found = jax.lax.dynamic_index_in_dim(array, index[0], dim, keepdims=False)
                return found if dim else found[None]

            return own(take, (spec, each), rest)(array, index)

        return jax.tree.map(entry, tree)

    number = jax.reshard(jnp.arange(stages), NamedSharding(mesh, each))
    # Every stage has the microbatches, of which the first takes one: gradients are summed once, at the end.
    fresh = jax.lax.broadcast_in_dim(
        x, (stages, *x.shape), range(1, x.ndim + 1), out_sharding=NamedSharding(mesh, several)
    )

    def by_layer(weights: Any) -> Any:
        return jax.tree.map(lambda w: jnp.swapaxes(w, 0, 1), weights)

    # Weights that are made in the loop would be kept for every tick. Those of one round are as the loop over
    # layers takes them before it; those of several are picked once more in the backward pass.
    only = by_layer(jax.tree.map(lambda w: w[:, 0], weights)) if rounds == 1 else None

    def work(y: jax.Array, at: Place) -> tuple[jax.Array, Sums]:
        own = by_layer(picked(weights, at.round, 1)) if only is None else only
        with over_stages(axes):
            over = jax.vmap(stage, in_axes=(1, 0, 0, 0, 0))
            return over(own, number, at.round, y, picked(rows, at.microbatch, 0))

    if rounds > 1:
        work = jax.checkpoint(work, policy=policy, prevent_cse=False)

    def counted(at: Place, total: jax.Array, found: jax.Array) -> jax.Array:
        """Sums of each stage, [stages], or rows of each layer, [stages, rounds, layers, ...], with those of a
        tick."""
        is_real = _before(at.is_real, found)
        found = jnp.where(is_real, found, 0)
        if found.ndim == 1:
            return total + found
        is_round = at.round[:, None] == jnp.arange(rounds)
        return total + jnp.where(_before(is_round, total), found[:, None], 0)

    def tick(carry, time):
        y, done, totals = carry
        at = schedule.place(time - number)
        y = enter(fresh, y, at.microbatch, (number == 0) & (at.round == 0))
        y, sums = work(y, at)
        totals = jax.tree.map(partial(counted, at), totals, sums)
        leaves = (number == last) & (at.round == rounds - 1) & at.is_real
        return (y, leave(done, y, at.microbatch, leaves), totals), None

    start = _zeros((stages, *x.shape[1:]), x.dtype, mesh, one)
    done = _zeros(fresh.shape, x.dtype, mesh, several)
    at = schedule.place(0 * number)
    totals = jax.tree.map(
        lambda x: _zeros((stages, *(rounds,) * (len(x.shape) > 1), *x.shape[1:]), x.dtype, mesh, each),
        jax.eval_shape(work, start, at)[1],
    )
    (_, done, totals), _ = jax.lax.scan(tick, (start, done, totals), jnp.arange(schedule.ticks))

    def from_last(done: jax.Array, number: jax.Array) -> jax.Array:
        return jax.lax.psum(jnp.where(number[0] == last, done[0], 0), axes)

    def of_all(total: jax.Array) -> jax.Array:
        if total.ndim == 1:
            return jnp.sum(total)
        by_stage = jax.reshard(total, NamedSharding(mesh, P()))
        return jnp.swapaxes(by_stage, 0, 1).reshape(-1, *total.shape[3:])

    return own(from_last, (several, each), held)(done, number), jax.tree.map(of_all, totals)


def _before(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` with dimensions behind its own, to broadcast to `like`."""
    return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))


def _zeros(shape: tuple[int, ...], dtype: Any, mesh: Any, spec: P) -> jax.Array:
    return jax.reshard(jnp.zeros(shape, dtype), NamedSharding(mesh, spec))


def _by_round(array: jax.Array, stages: int, rounds: int, mesh: Any, axes: tuple[str, ...]) -> jax.Array:
    """`array` [layers, ...], of which every stage holds as many layers that follow each other, as [stages,
    rounds, layers of a round, ...]: a round's layers go from stage to stage.

    With one round nothing moves. With several, groups of layers go to their stages by as many
    collective-permutes, in each of which every stage sends one group and receives one.
    """
    spec = jax.typeof(array).sharding.spec
    size = array.shape[0] // (stages * rounds)
    shape = stages, rounds, size, *array.shape[1:]
    laid = P(axes, None, None, *spec[1:])
    array = jax.lax.reshape(array, shape, out_sharding=NamedSharding(mesh, laid))
    if rounds == 1:
        return array
    groups = np.arange(stages * rounds)
    turn = (groups % rounds + groups // math.lcm(stages, rounds)) % rounds
    sent, received = np.zeros((2, rounds, stages), int)
    moves = [[(0, 0)] * stages for _ in range(rounds)]
    for group in groups:
        source, target = group // rounds, group % stages
        sent[turn[group], source] = group % rounds
        received[turn[group], target] = group // stages
        moves[turn[group]][source] = (int(source), int(target))

    def move(own: jax.Array, number: jax.Array) -> jax.Array:
        found = jnp.zeros_like(own)
        for k in range(rounds):
            group = own[0, jnp.asarray(sent[k])[number[0]]]
            came = jax.lax.ppermute(group, axes, moves[k])
            found = found.at[0, jnp.asarray(received[k])[number[0]]].set(came)
        return found

    number = jax.reshard(jnp.arange(stages), NamedSharding(mesh, P(axes)))
    return jax.shard_map(move, mesh=mesh, in_specs=(laid, P(axes)), out_specs=laid)(array, number)


def microbatches(rows: int, stages: int) -> int:
    """Into how many microbatches to split as many rows of a device, where nothing says it: a divisor, twice
    the stages if there are as many rows."""
    return max(count for count in range(1, min(rows, 2 * stages) + 1) if rows % count == 0)


def rows_of(x: jax.Array, count: int) -> jax.Array:
    """x [batch, ...] as [count, batch / count, ...]: each device's own rows, split."""
    spec = jax.typeof(x).sharding.spec
    sharding = NamedSharding(named.current_layout().mesh, P(spec[0], None, *spec[1:]))
    x = jax.lax.reshape(x, (x.shape[0] // count, count, *x.shape[1:]), out_sharding=sharding)
    return jnp.swapaxes(x, 0, 1)


def whole(x: jax.Array) -> jax.Array:
    """What `rows_of` split: x [count, batch / count, ...] as [batch, ...]."""
    spec = jax.typeof(x).sharding.spec
    sharding = NamedSharding(named.current_layout().mesh, P(*spec[1:]))
    shape = x.shape[0] * x.shape[1], *x.shape[2:]
    return jax.lax.reshape(jnp.swapaxes(x, 0, 1), shape, out_sharding=sharding)
