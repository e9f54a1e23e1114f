"""What one device does and holds in a training step, counted from its traced program: products, memory's
traffic, collectives, and the memory at its fullest.

Nothing is compiled: the counts are those of the program as it is written, and a model of what a compiler
makes of it. Products and collectives are exact but for what a compiler drops or joins. Of memory it is
assumed that what is computed element by element is never stored unless a product, a kernel or a loop reads
it.
"""

import math
from dataclasses import replace
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from neojax.config import ModelConfig
from neojax.models.flops import visible_keys
from neojax.plan.fusion import tiles
from neojax.plan.trace import Traced
from neojax.plan.walk import Walker
from neojax.plan.work import Held, Memory, Product, Work


def _seen(one: Product, model: ModelConfig) -> Product:
    """A kernel's product with the FLOPs of the keys that are seen, by all layers of attention together; where
    rows are split, by those of its kind: global ones have the keys of whole rows, local ones those near."""
    if not one.kernel:
        return one
    kinds = [kind for kind in model.attention_layers if kind not in ("none", "linear")]
    window, length = model.attention.window, model.n_ctx
    if one.m != one.n:
        kinds = ["local" if one.n < length else "global"]
    seen = sum(visible_keys(kind, length, window, model.causal) for kind in kinds) / len(kinds)
    return replace(one, flops=one.flops * 2.0 * one.batch * one.m * one.k * seen)


def count(traced: Traced, tiled: bool = True) -> Work:
    """What one device does and holds in the step of `traced`; tiled: it is a TPU."""
    sizes = dict(traced.layout.mesh.shape)
    jaxpr, _ = dce_jaxpr(traced.program.jaxpr, [True] * len(traced.program.jaxpr.outvars))
    walker = Walker(sizes, tiled)
    fullest, frame = walker.frame(jaxpr, 1, False, aliased=True)
    kept = sum(one.bytes for one in walker.live(frame, inside=False) if one.what == "kept")

    def held(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        shapes = [x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape for x in leaves]
        return sum((tiles(s) if tiled else math.prod(s)) * x.dtype.itemsize for s, x in zip(shapes, leaves))

    state = traced.state
    trained = held(state.trained)
    memory = Memory(
        parameters=trained + held(state.frozen),
        optimizer=held(state.opt_state),
        batch=held(traced.batch),
        gradients=trained,
        kept=kept,
        temporaries=fullest,
        checkpoint=sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)),
    )
    given = []
    for path, leaf in jax.tree_util.tree_leaves_with_path((state, traced.batch)):
        part = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        own = ("state", "batch")[path[0].idx] + jax.tree_util.keystr(path[1:])
        size = tiles(part) if tiled else math.prod(part)
        given.append(Held(size * leaf.dtype.itemsize, tuple(part), str(leaf.dtype), own))
    return Work(
        tuple(_seen(one, traced.config.model) for one in walker.products),
        tuple(one for one in walker.transfers if one.times),
        walker.traffic + 2 * (memory.parameters + memory.optimizer) + memory.gradients,
        walker.operations,
        memory,
        sizes,
        tuple(given),
        tuple(walker.live(frame)),
    )
