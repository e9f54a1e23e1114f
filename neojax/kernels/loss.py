"""The loss of predicted tokens against an output table."""

import jax
import jax.numpy as jnp

from neojax.kernels.chunked_loss import chunked_cross_entropy, scored_count, scoring
from neojax.kernels.entmax import entmax_loss
from neojax.layout import named


def logits(
    hidden: jax.Array,
    table: named.Param | jax.Array,
    n_vocab: int,
    bias: named.Param | jax.Array | None = None,
    width: str = "embd",
) -> jax.Array:
    """hidden [batch, sequence, `width`] times table [vocab, `width`], plus bias [vocab], in float32 [batch,
    sequence, vocab].

    Rows of the table past `n_vocab` are padding; their logits are -inf, so that they never get probability.
    """
    out = named.einsum(
        f"batch sequence {width}, vocab {width} -> batch sequence vocab", hidden, table, dtype=jnp.float32
    )
    if bias is not None:
        out = out + named.use(bias, "vocab")
    if out.shape[-1] > n_vocab:
        out = jnp.where(jnp.arange(out.shape[-1]) < n_vocab, out, -jnp.inf)
    return out


def cross_entropy(
    hidden: jax.Array,
    table: named.Param | jax.Array,
    targets: jax.Array,
    n_vocab: int,
    z_loss: float = 0.0,
    entmax: bool = False,
    weights: jax.Array | None = None,
    bias: named.Param | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the scored tokens of a batch, in float32.

    targets: int32 [batch, sequence]; -1 is not scored. weights: float32 [batch, sequence], how often each of
    them counts (None: once), in all sums; no gradient is taken with respect to them. bias: float32 [vocab],
    added to the logits. Returns scalars (objective, negative log-likelihood in nats, number of scored tokens
    or sum of their weights); the objective is the likelihood term plus `z_loss` times the squared
    log-partition (PaLM, section 5). With `entmax` the loss of `kernels.entmax` stands in for the likelihood.
    Rule: in chunks of tokens, unless `entmax` asks for whole rows of logits.
    """
    if entmax:
        return reference_cross_entropy(hidden, table, targets, n_vocab, z_loss, entmax, weights, bias)
    return chunked_cross_entropy(hidden, table, targets, n_vocab, z_loss, weights, bias)[:3]


def reference_cross_entropy(
    hidden: jax.Array,
    table: named.Param | jax.Array,
    targets: jax.Array,
    n_vocab: int,
    z_loss: float = 0.0,
    entmax: bool = False,
    weights: jax.Array | None = None,
    bias: named.Param | jax.Array | None = None,
    width: str = "embd",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `cross_entropy`, by the definition: all logits at once. The target's logit is picked by comparison,
    which works on a split vocabulary."""
    scores = logits(hidden, table, n_vocab, bias, width)
    targets = named.lay(targets, "batch sequence", "vocab")
    if weights is not None:
        weights = named.lay(jax.lax.stop_gradient(weights), "batch sequence", "vocab")
    scored, weighted = scoring(targets, weights)
    hit = jnp.arange(scores.shape[-1]) == targets[..., None]
    picked = jnp.sum(jnp.where(hit, scores, 0.0), axis=-1)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    log_z = top + jnp.log(jnp.sum(jnp.exp(scores - top[..., None]), axis=-1))
    per_token = entmax_loss(scores, picked) if entmax else log_z - picked
    nll = jnp.sum(weighted(per_token))
    penalty = z_loss * jnp.sum(weighted(log_z**2)) if z_loss else 0.0
    return nll + penalty, nll, scored_count(scored, weights)
