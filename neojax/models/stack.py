"""The layers between embedding and head: grouped, scanned or unrolled, recomputed in the backward pass as
asked."""

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from neojax.layout import named
from neojax.models.cache import Cache
from neojax.models.compute import LAYER, REMAT_POLICIES, STAGE_POLICIES, Compute
from neojax.models.context import Context
from neojax.models.losses import Sums, added
from neojax.models.pipeline import Schedule, microbatches, rows_of, whole
from neojax.models.pipeline import run as run_pipeline

MakeBlock = Callable[[Set[str], Mapping[str, int]], nnx.Module]
"""(the kinds of the layers that use its weights, the sizes of dimensions) -> a block (x, kind, context,
cache, dropout key) -> (x, cache, sums)."""

Caches = tuple[Cache, ...]


class Stack(nnx.Module):
    """The blocks of all layers, whose `kinds` (attention types, see `ModelConfig.layers`) are given in order.

    Layers are grouped by the smallest repeating pattern of kinds; the parameters of the repetitions are
    stacked along a first dimension `layers` and scanned, `compute.unroll` of them in one turn of the loop (0:
    all, so that there is no loop). Without `compute.stacked` every layer has parameters of its own and the
    layers are unrolled.

    With `groups` layers share weights: the layers fall into as many groups that follow each other, and each
    group has `inner` blocks, whose turns repeat until its layers are done; one of each is one set of weights
    for all layers. Groups are unrolled, and within each the turns are scanned.
    """

    def __init__(
        self,
        make_block: MakeBlock,
        kinds: tuple[str, ...],
        sizes: Mapping[str, int],
        compute: Compute,
        *,
        groups: int = 0,
        inner: int = 1,
    ):
        self.compute = compute
        self.groups = groups
        self.inner = inner
        each = len(kinds) // (groups or 1)
        self.runs = tuple(_Run.of(kinds[i : i + each], i, compute, inner) for i in range(0, len(kinds), each))
        if groups:
            seen = [{run.kinds[i] for i in range(j, each, inner)} for run in self.runs for j in range(inner)]
            self.blocks = nnx.List([make_block(kinds, sizes) for kinds in seen])
        else:
            run = self.runs[0]
            own = {**sizes, "layers": run.repeats} if compute.stacked else sizes
            self.blocks = nnx.List([make_block({kind}, own) for kind in run.turn])

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        caches: Caches | None,
        dropout_key: jax.Array | None,
        scored: jax.Array | None = None,
    ) -> tuple[jax.Array, Caches | None, Sums]:
        """x [batch, sequence, embd] -> the same shape, the cache of every layer where `context` asks for
        them, and what the blocks reported, see `losses.added`.

        Where the layers are split over the mesh, they are a pipeline. x may then be [microbatches, batch,
        sequence, embd], as are the rows of `context`, with a key for each, and how much each scores, which
        makes "objective" of what is reported as "mean_objective".
        """
        if self.compute.stacked and named.current_layout().axes("layers"):
            x, sums = self._pipeline(x, context, dropout_key, scored)
            return x, None, sums
        kept, totals = [], []
        for number, run in enumerate(self.runs):
            blocks = self.blocks
            if len(self.runs) > 1:
                blocks = nnx.List(list(blocks)[number * self.inner : (number + 1) * self.inner])
            own = None if caches is None else caches[run.first : run.first + len(run.kinds)]
            go = self._scan if run.repeats > 1 else self._unroll
            x, made, sums = go(run, blocks, x, context, own, dropout_key)
            kept.append(made)
            totals.append(sums)
        together = None if kept[0] is None else tuple(cache for made in kept for cache in made)
        return x, together, added(totals)

    def layer(self, block: int, repeat: int = 0) -> int:
        """The number of the layer that is repetition `repeat` of block number `block`; where layers share
        weights, that of the set of weights."""
        return repeat * len(self.blocks) + block

    def _turn(self, run, blocks, first, x, context, caches, key):
        """One turn of a run; `first` is the index of its first layer, for dropout keys."""
        kept, sums = [], []
        for i, kind in enumerate(run.turn):
            own = None if key is None else jax.random.fold_in(key, first + i)
            block = blocks[i % len(blocks)]
            with named.dropping(own):
                x, cache, found = block(x, kind, context, None if caches is None else caches[i], own)
            kept.append(cache)
            sums.append(found)
        total = added(sums)
        return named.lay(x, "batch sequence embd"), (None if kept[0] is None else tuple(kept), total)

    def _pipeline(
        self, x: jax.Array, context: Context, key: jax.Array | None, scored: jax.Array | None
    ) -> tuple[jax.Array, Sums]:
        layout, (run,) = named.current_layout(), self.runs
        graphdef, state = nnx.split(self.blocks)
        rows = {name: getattr(context, name) for name in ("start", "segments", "positions", "branches")}
        rows = {name: row for name, row in rows.items() if row is not None}
        is_split = x.ndim == 4
        if not is_split:
            count = microbatches(x.shape[0] // layout.split("batch"), layout.split("layers"))
            x, rows = jax.tree.map(lambda a: rows_of(a, count), (x, rows))
            key = None if key is None else jax.random.split(key, count)
        schedule = Schedule(layout.split("layers"), self.compute.rounds, x.shape[0])
        size = len(run.turn)
        if key is not None:
            rows["key"] = jax.random.key_data(key)
        if scored is not None:
            rows["scored"] = scored

        def stage(weights, number, at_round, x, rows):
            repeats = jax.tree.leaves(weights)[0].shape[0]
            first = (at_round * schedule.stages + number) * repeats * size
            own = None if key is None else jax.random.wrap_key_data(rows["key"])
            place = Context(**{name: rows[name] for name in rows.keys() - {"key", "scored"}})

            def body(x, inputs):
                first, layer = inputs
                x = checkpoint_name(x, LAYER)
                x, (_, sums) = self._turn(run, nnx.merge(graphdef, layer), first, x, place, None, own)
                return x, sums

            turns = min(self.compute.unroll or repeats, repeats)
            looped = self._checkpointed(body, repeats)
            layers = first + jnp.arange(repeats) * size, weights
            x, sums = jax.lax.scan(looped, x, layers, unroll=turns)
            sums = jax.tree.map(_over_repetitions, sums)
            if scored is not None and "mean_objective" in sums:
                mean, times = sums.pop("mean_objective")
                sums["objective"] = mean * rows["scored"], times
            return x, sums

        x, sums = run_pipeline(stage, schedule, state, x, rows, STAGE_POLICIES.get(self.compute.remat))
        if is_split:
            return x, sums
        if "mean_objective" in sums:  # added up over microbatches
            mean, times = sums["mean_objective"]
            sums["mean_objective"] = mean / x.shape[0], times
        return whole(x), sums

    def _scan(self, run, blocks, x, context, caches, key):
        graphdef, state = nnx.split(blocks)
        size = len(run.turn)

        def body(x, inputs):
            first, layer, cache = inputs
            own = nnx.merge(graphdef, state if self.groups else layer)
            return self._turn(run, own, first, x, context, cache, key)

        if caches is not None:  # a cache per layer -> one per block of the turn, stacked over repetitions
            caches = tuple(jax.tree.map(lambda *a: jnp.stack(a), *caches[i::size]) for i in range(size))
        first = run.first + jnp.arange(run.repeats) * size
        layers = None if self.groups else state
        turns = min(self.compute.unroll or run.repeats, run.repeats)
        looped = self._checkpointed(body, run.repeats)
        x, (kept, sums) = jax.lax.scan(looped, x, (first, layers, caches), unroll=turns)
        if kept is not None:
            kept = tuple(jax.tree.map(lambda a, r=r: a[r], c) for r in range(run.repeats) for c in kept)
        return x, kept, jax.tree.map(_over_repetitions, sums)

    def _unroll(self, run, blocks, x, context, caches, key):
        graphdef, state = nnx.split(blocks)
        if run.repeats and not self.groups:  # a single repetition: drop the stacking dimension
            state = jax.tree.map(lambda a: a[0], state)

        def body(x, inputs):
            layer, cache = inputs
            return self._turn(run, nnx.merge(graphdef, layer), run.first, x, context, cache, key)

        x, (kept, sums) = self._checkpointed(body, run.repeats)(x, (state, caches))
        return x, kept, sums

    def _checkpointed(self, body: Callable[..., Any], repeats: int) -> Callable[..., Any]:
        remat, unroll = self.compute.remat, self.compute.unroll
        if remat == "none":
            return body
        return jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=unroll != 1 or repeats <= 1)


@dataclass(frozen=True)
class _Run:
    """Layers that are run in one loop: their `kinds`, the number of the `first`, and how they repeat: the
    `turn` of kinds, `repeats` times; 0 where they do not, and the turn is all of them."""

    kinds: tuple[str, ...]
    first: int
    turn: tuple[str, ...]
    repeats: int

    @staticmethod
    def of(kinds: tuple[str, ...], first: int, compute: Compute, inner: int) -> "_Run":
        """A run whose turn is a multiple of `inner` layers."""
        if not compute.stacked:
            return _Run(kinds, first, kinds, 0)
        size = math.lcm(len(smallest_pattern(kinds)), inner)
        turn = kinds[:size] if len(kinds) % size == 0 else kinds
        return _Run(kinds, first, turn, len(kinds) // len(turn))


def _over_repetitions(found: jax.Array) -> jax.Array:
    """What the repetitions of a turn reported, [repeats] or [repeats, blocks, ...], as a sum or as rows."""
    return jnp.sum(found, axis=0) if found.ndim == 1 else found.reshape(-1, *found.shape[2:])


def smallest_pattern(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest prefix that repeats to all of `kinds`."""
    for length in range(1, len(kinds) + 1):
        if len(kinds) % length == 0 and kinds[:length] * (len(kinds) // length) == kinds:
            return kinds[:length]
    return kinds
