"""The head that tells which tokens were masked: a layer of its own, and the table of logits with a bias."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.config import ModelConfig
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.kernels import loss
from neojax.kernels.chunked_loss import chunked_cross_entropy
from neojax.layout import named
from neojax.layout.named import Constant, Normal, Param, einsum
from neojax.models.activations import ACTIVATIONS, LEARNED
from neojax.models.classifiers import Scores
from neojax.models.norms import LayerNorm


class MaskedTokens(nnx.Module):
    """norm(activation(dense x + bias)) times the table of the token embedding, or one of its own, plus a bias
    for each token. The layer is as wide as the token embedding. https://arxiv.org/abs/1810.04805"""

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int]):
        if config.mlp.activation in LEARNED:
            raise NeojaxError(
                f"model.mlp.activation={config.mlp.activation} has scalars that are learned, which the head "
                "mlm has not; use another"
            )
        self.n_vocab = config.n_vocab
        self.activation = config.mlp.activation
        self.width = "embd" if config.embedding.width is None else "token_embd"
        own = {**sizes, "features": config.token_embd}
        self.dense = Param("embd features", Normal(0.02), own)
        self.dense_bias = Param("features", Constant(0.0), own)
        self.norm = LayerNorm(config.norm.epsilon, own, "features")
        self.table = None if config.embedding.tied else Param(f"vocab {self.width}", Normal(0.02), sizes)
        self.bias = Param("vocab", Constant(0.0), sizes)

    def transform(self, hidden: jax.Array) -> jax.Array:
        """hidden [batch, sequence, embd] -> what the table is multiplied with, [batch, sequence, width of the
        token embedding]."""
        x = einsum("batch sequence embd, embd features -> batch sequence features", hidden, self.dense)
        x = named.biased(x, self.dense_bias, "features")
        x = jax.checkpoint(lambda x: ACTIVATIONS[self.activation](x).astype(x.dtype))(x)
        return named.lay(self.norm(x), f"batch sequence {self.width}")

    def logits(self, hidden: jax.Array, wte: Param) -> jax.Array:
        """float32 [batch, sequence, vocab], padding at -inf."""
        table = wte if self.table is None else self.table
        return loss.logits(self.transform(hidden), table, self.n_vocab, self.bias, self.width)

    def scores(
        self, hidden: jax.Array, wte: Param, batch: Batch, z_loss: float = 0.0
    ) -> tuple[jax.Array, Scores]:
        """(objective, scores) of the tokens that `batch` scores. Only these go through the table, however
        many they are: see `kernels.chunked_loss`."""
        objective, nats, scored, hits = chunked_cross_entropy(
            self.transform(hidden),
            wte if self.table is None else self.table,
            jnp.asarray(batch.targets),
            self.n_vocab,
            z_loss,
            batch.weights,
            self.bias,
            is_sparse=True,
            width=self.width,
        )
        return objective, (nats, scored, hits)
