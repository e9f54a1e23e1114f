"""Masked-language-model training: some tokens of a batch are hidden, and those are the ones that are scored.

gpt-neo scored the tokens it had not masked, by a slip; here, as in BERT, it is the masked ones.
https://arxiv.org/abs/1810.04805
"""

import jax
import jax.numpy as jnp

from neojax.config import TrainConfig
from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.masking import share, shown
from neojax.data.share import BATCH_DIMS
from neojax.layout.mesh import Layout


def mask_tokens(batch: Batch, key: jax.Array, train: TrainConfig, n_vocab: int, layout: Layout) -> Batch:
    """A batch of next-token prediction, [microbatches, batch, sequence], as one of masked tokens.

    Each token is scored with probability `mlm_mask_prob`, unless its id is in `mlm_mask_ignore_ids` or it is
    padding. A scored token stays as it is with probability `mlm_same_token_prob`, becomes any id with
    `mlm_random_token_prob`, and otherwise becomes `mlm_mask_id`. `mlm_cls_token_id` takes the place of the
    first token of each row, or of each document where they stand apart, and is not scored. The choice depends
    on `key` and the place in the batch, not on the mesh.
    """
    tokens = jnp.asarray(batch.tokens)
    present = batch.targets >= 0 if batch.segments is None else batch.segments > 0
    sharding = layout.sharding(BATCH_DIMS, tokens.shape)
    which, how, what = (
        jax.random.bits(k, tokens.shape, jnp.uint32, out_sharding=sharding) for k in jax.random.split(key, 3)
    )
    if train.mlm_cls_token_id is not None:
        first = jnp.arange(tokens.shape[-1]) == 0
        if batch.positions is not None:
            first = present & (batch.positions == 0)
        tokens = jnp.where(first, train.mlm_cls_token_id, tokens)
        present &= ~first
    for ignored in train.mlm_mask_ignore_ids:
        present &= tokens != ignored
    scored = present & (which < share(train.mlm_mask_prob))
    same, random = train.mlm_same_token_prob, train.mlm_random_token_prob
    mask = jnp.asarray(train.mlm_mask_id, tokens.dtype)
    hidden = shown(tokens, how, what, same, random, mask, n_vocab, jnp)
    return batch._replace(
        tokens=jnp.where(scored, hidden, tokens), targets=jnp.where(scored, tokens, NOT_SCORED)
    )
