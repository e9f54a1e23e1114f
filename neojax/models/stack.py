"""The layers between embedding and head: grouped, scanned or unrolled, recomputed in the backward pass as
asked."""

from collections.abc import Callable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.layout import named
from neojax.models.cache import Cache
from neojax.models.compute import REMAT_POLICIES, Compute
from neojax.models.context import Context
from neojax.models.losses import Sums

MakeBlock = Callable[[Set[str], Mapping[str, int]], nnx.Module]
"""(the kinds of the layers that use its weights, the sizes of dimensions) -> a block (x, kind, context,
cache, dropout key) -> (x, cache, sums), where the sums have the same names in every block of the stack."""

Caches = tuple[Cache, ...]


class Stack(nnx.Module):
    """The blocks of all layers, whose `kinds` (attention types) are given in order.

    Layers are grouped by the smallest repeating pattern of kinds; the parameters of the repetitions are
    stacked along a first dimension `layers` and scanned, `compute.unroll` of them in one turn of the loop (0:
    all, so that there is no loop). Without `compute.stacked` every layer has parameters of its own and the
    layers are unrolled. With `shared` all layers use the weights of one block.
    """

    def __init__(
        self,
        make_block: MakeBlock,
        kinds: tuple[str, ...],
        sizes: Mapping[str, int],
        compute: Compute,
        *,
        shared: bool = False,
    ):
        self.compute = compute
        self.shared = shared
        self.kinds = smallest_pattern(kinds) if compute.stacked else kinds  # of the layers of one group
        self.repeats = len(kinds) // len(self.kinds) if compute.stacked else 0
        if shared:
            self.blocks = nnx.List([make_block(set(kinds), sizes)])
        else:
            own = {**sizes, "layers": self.repeats} if compute.stacked else sizes
            self.blocks = nnx.List([make_block({kind}, own) for kind in self.kinds])

    def __call__(
        self, x: jax.Array, context: Context, caches: Caches | None, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, Caches | None, Sums]:
        """x [batch, sequence, embd] -> the same shape, the cache of every layer where `context` asks for
        them, and what the blocks added up, summed over layers."""
        run = self._scan if self.repeats > 1 else self._unroll
        return run(x, context, caches, dropout_key)

    def layer(self, block: int, repeat: int = 0) -> int:
        """The number of the layer that is repetition `repeat` of block number `block`."""
        return repeat * len(self.blocks) + block

    def _group(self, blocks, first, x, context, caches, key):
        """One repetition of the layer group; `first` is the index of its first layer, for dropout keys."""
        kept, sums = [], []
        for i, kind in enumerate(self.kinds):
            own = None if key is None else jax.random.fold_in(key, first + i)
            block = blocks[0 if self.shared else i]
            x, cache, found = block(x, kind, context, None if caches is None else caches[i], own)
            kept.append(cache)
            sums.append(found)
        total = jax.tree.map(lambda *parts: sum(parts), *sums)
        return named.lay(x, "batch sequence embd"), (None if kept[0] is None else tuple(kept), total)

    def _scan(self, x, context, caches, key):
        graphdef, state = nnx.split(self.blocks)
        group = len(self.kinds)

        def body(x, inputs):
            first, layer, cache = inputs
            blocks = nnx.merge(graphdef, state if self.shared else layer)
            return self._group(blocks, first, x, context, cache, key)

        if caches is not None:  # a cache per layer -> one per block of the group, stacked over repetitions
            caches = tuple(jax.tree.map(lambda *a: jnp.stack(a), *caches[i::group]) for i in range(group))
        first = jnp.arange(self.repeats) * group
        layers = None if self.shared else state
        turn = min(self.compute.unroll or self.repeats, self.repeats)
        x, (kept, sums) = jax.lax.scan(self._checkpointed(body), x, (first, layers, caches), unroll=turn)
        if kept is not None:
            kept = tuple(jax.tree.map(lambda a, r=r: a[r], c) for r in range(self.repeats) for c in kept)
        return x, kept, jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)

    def _unroll(self, x, context, caches, key):
        graphdef, state = nnx.split(self.blocks)
        if self.repeats and not self.shared:  # a single repetition: drop the stacking dimension
            state = jax.tree.map(lambda a: a[0], state)

        def body(x, inputs):
            layer, cache = inputs
            return self._group(nnx.merge(graphdef, layer), 0, x, context, cache, key)

        x, (kept, sums) = self._checkpointed(body)(x, (state, caches))
        return x, kept, sums

    def _checkpointed(self, body: Callable[..., Any]) -> Callable[..., Any]:
        remat, unroll = self.compute.remat, self.compute.unroll
        if remat == "none":
            return body
        return jax.checkpoint(
            body, policy=REMAT_POLICIES[remat], prevent_cse=unroll != 1 or self.repeats <= 1
        )


def smallest_pattern(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest prefix that repeats to all of `kinds`."""
    for length in range(1, len(kinds) + 1):
        if len(kinds) % length == 0 and kinds[:length] * (len(kinds) // length) == kinds:
            return kinds[:length]
    return kinds
