"""What stands after the stack of a language model: the final norm, and the table of logits."""

from collections.abc import Mapping

import jax
from flax import nnx

from neojax.config import ModelConfig
from neojax.data.batch import Batch
from neojax.kernels import loss
from neojax.kernels.chunked_loss import chunked_token_scores, scored_count
from neojax.layout.named import Constant, Normal, Param
from neojax.models.losses import Losses
from neojax.models.norms import final_norm


class LanguageHead(nnx.Module):
    """The likelihood of the next token. Its methods take final hidden states, [batch, sequence, embd] after
    `norm_f`, and the token embedding, which is the table of logits unless the model has one of its own; it
    may have a bias."""

    draws = False  # whether it has dropout

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int]):
        self.n_vocab = config.n_vocab
        self.norm_f = final_norm(config, sizes)
        self.lm_head = None if config.embedding.tied else Param("vocab embd", Normal(0.02), sizes)
        self.lm_head_bias = Param("vocab", Constant(0.0), sizes) if config.embedding.output_bias else None

    def table(self, wte: Param) -> Param:
        """The table of the logits [vocab, embd]."""
        return wte if self.lm_head is None else self.lm_head

    def logits(self, hidden: jax.Array, wte: Param) -> jax.Array:
        """float32 [batch, sequence, vocab], padding at -inf."""
        return loss.logits(hidden, self.table(wte), self.n_vocab, self.lm_head_bias)

    def outputs(
        self, hidden: jax.Array, wte: Param, choices: int = 1, segments: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """The logits by the kind of the head, of which this is the only one."""
        return {"lm": self.logits(hidden, wte)}

    def scored(self, batch: Batch) -> dict[str, jax.Array]:
        """How many tokens of a batch of any leading dimensions are scored."""
        return {"loss": scored_count(batch.targets >= 0, batch.weights)}

    def loss(
        self,
        hidden: jax.Array,
        wte: Param,
        batch: Batch,
        *,
        z_loss: float = 0.0,
        entmax: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> Losses:
        """The losses of what `batch` scores, see `kernels.loss.cross_entropy`. There is no dropout here."""
        objective, nats, scored = loss.cross_entropy(
            hidden,
            self.table(wte),
            batch.targets,
            self.n_vocab,
            z_loss,
            entmax,
            batch.weights,
            self.lm_head_bias,
        )
        return Losses(objective, {"loss": (nats, scored)})

    def token_scores(self, hidden: jax.Array, wte: Param, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(log-probability of every target in nats, float32; whether it is the likeliest token), [batch,
        sequence]."""
        return chunked_token_scores(hidden, self.table(wte), targets, self.n_vocab, self.lm_head_bias)
