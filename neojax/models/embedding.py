"""What stands before the stack: the embedding of tokens, of positions where these have a table, and of token
types."""

from collections.abc import Mapping

import jax
from flax import nnx

from neojax.config import ModelConfig
from neojax.layout import named
from neojax.layout.named import Constant, Normal, Param, einsum
from neojax.models.block import residual_dropout
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.norms import LayerNorm
from neojax.models.positions import embedding, look_up, position_table


class Embedding(nnx.Module):
    """Sum of token and position embedding, and of that of token types where there are any (BERT), with
    dropout.

    The sum is normalised where the config asks for it, before dropout. Tables of a width of their own,
    `token_embd`, are brought to `embd` by a matrix and a bias, after dropout: ALBERT's factorisation,
    https://arxiv.org/abs/1909.11942.
    """

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int], compute: Compute):
        self.rate = config.embedding.dropout
        self.dtype = compute.dtype
        is_factored = config.embedding.width is not None
        self.width = "token_embd" if is_factored else "embd"
        self.wte = Param(f"vocab {self.width}", Normal(0.02), sizes)
        self.wpe = position_table(config, sizes, self.width)
        types = config.embedding.token_types > 0
        self.token_types = Param(f"token_types {self.width}", Normal(0.02), sizes) if types else None
        self.norm_e = LayerNorm(config.norm.epsilon, sizes, self.width) if config.embedding.norm else None
        self.mapping = Param("token_embd embd", Normal(0.02), sizes) if is_factored else None
        self.mapping_bias = Param("embd", Constant(0.0), sizes) if is_factored else None

    def __call__(self, tokens: jax.Array, context: Context, dropout_key: jax.Array | None) -> jax.Array:
        """tokens int32 [batch, sequence] -> [batch, sequence, embd]."""
        dims = f"batch sequence {self.width}"
        x = named.look_up(self.wte, f"vocab {self.width}", tokens, dims, self.dtype)
        if self.token_types is not None:
            x = (x + self.of_types(context.token_types)).astype(x.dtype)
        if self.wpe is not None:
            x = (x + embedding(self.wpe, context, tokens.shape[1], self.width)).astype(x.dtype)
        if self.norm_e is not None:
            x = self.norm_e(x)
        x = residual_dropout(x, self.rate, dropout_key, dims)
        if self.mapping is None or self.mapping_bias is None:
            return x
        x = einsum("batch sequence token_embd, token_embd embd -> batch sequence embd", x, self.mapping)
        return named.biased(x, self.mapping_bias, "embd")

    def of_types(self, types: jax.Array | None) -> jax.Array:
        """The embedding of token types int32 [batch, sequence], or of type 0, in float32."""
        assert self.token_types is not None
        dims = f"token_types {self.width}"
        if types is None:
            return named.use(self.token_types, dims)[0]
        return look_up(self.token_types, dims, named.lay(types, "batch sequence"))
