"""What stands before the stack: the embedding of tokens, and of positions where these have a table."""

from collections.abc import Mapping

import jax
from flax import nnx

from neojax.config import ModelConfig
from neojax.layout import named
from neojax.layout.named import Normal, Param
from neojax.models.block import residual_dropout
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.positions import embedding, position_table


class Embedding(nnx.Module):
    """Sum of token and position embedding, with dropout."""

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int], compute: Compute):
        self.rate = config.embedding.dropout
        self.dtype = compute.dtype
        self.wte = Param("vocab embd", Normal(0.02), sizes)
        self.wpe = position_table(config, sizes)

    def __call__(self, tokens: jax.Array, context: Context, dropout_key: jax.Array | None) -> jax.Array:
        """tokens int32 [batch, sequence] -> [batch, sequence, embd]."""
        x = named.look_up(self.wte, "vocab embd", tokens, "batch sequence embd", self.dtype)
        if self.wpe is not None:
            x = (x + embedding(self.wpe, context.token_positions(tokens.shape[1]))).astype(x.dtype)
        return residual_dropout(x, self.rate, dropout_key)
