"""The losses of microbatches that pass through a pipeline together."""

from functools import partial

import jax
import jax.numpy as jnp

from neojax.data.batch import Batch
from neojax.layout import named
from neojax.models import pipeline
from neojax.models.context import Context
from neojax.models.losses import Losses
from neojax.models.transformer import HEAD, Transformer


def loss_of_microbatches(
    model: Transformer,
    batch: Batch,
    *,
    z_loss: float = 0.0,
    entmax: bool = False,
    dropout_keys: jax.Array | None = None,
) -> Losses:
    """The sum of the losses of microbatches, whose arrays are [microbatches, batch, ...], each with its
    key: in a pipeline, where all of them are under way at once."""
    chooses = batch.tokens.ndim > 3
    flat = jax.lax.map(model.flat, batch) if chooses else batch
    embed = stack = head = dropout_keys
    if dropout_keys is not None:
        embed, stack = jnp.moveaxis(jax.vmap(jax.random.split)(dropout_keys), 1, 0)
        head = jax.vmap(partial(jax.random.fold_in, data=HEAD))(dropout_keys)

    def embedded(batch: Batch, key: jax.Array | None) -> jax.Array:
        return model.embedding(named.lay(batch.tokens, "batch sequence"), Context.of(batch), key)

    def scored(x: jax.Array, batch: Batch, key: jax.Array | None) -> Losses:
        hidden, table = model.head.norm_f(x), model.embedding.wte
        return model.head.loss(hidden, table, batch, z_loss=z_loss, entmax=entmax, dropout_key=key)

    with model.names_in_force():
        rows = flat._replace(labels=None)
        if embed is None or not model.embedding.rate:
            x = embedded(jax.tree.map(pipeline.whole, rows), None)
            x = pipeline.rows_of(x, len(batch.tokens))
        else:
            x = jax.lax.map(lambda each: embedded(*each), (rows, embed))
        counts = (
            jax.vmap(lambda each: model.scored(each)["loss"])(flat) if model.config.experts.number else None
        )
        x, _, sums = model.stack(x, Context.of(flat), None, stack, counts)
        if not chooses and (head is None or not model.head.draws):
            return scored(pipeline.whole(x), jax.tree.map(pipeline.whole, flat), None).plus(sums)
        # One after another, as each has bits of its own; computed again instead of keeping them all
        each = jax.lax.map(lambda each: jax.checkpoint(scored)(*each), (x, flat, head))
        return jax.tree.map(partial(jnp.sum, axis=0), each).plus(sums)
