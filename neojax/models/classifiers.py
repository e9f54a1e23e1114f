"""Heads that tell classes apart, of a row or of a token, and their losses."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.layout import named
from neojax.layout.named import Constant, Dropout, Normal, Param, einsum

Scores = tuple[jax.Array, jax.Array, jax.Array | None]
"""Scalars, float32: the sum of losses, the number of what is scored, how much of it is right (None: no such
thing)."""


class Pooler(nnx.Module):
    """tanh(weight x + bias) of the first token of each row, as in BERT."""

    def __init__(self, sizes: Mapping[str, int]):
        own = {**sizes, "features": sizes["embd"]}
        self.weight = Param("embd features", Normal(0.02), own)
        self.bias = Param("features", Constant(0.0), own)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """hidden [batch, sequence, embd] -> [batch, features], as many of these as embd."""
        first = jnp.arange(hidden.shape[1])[:, None] == 0
        first = jnp.sum(jnp.where(first, hidden, 0), axis=1)  # no slice, which a split sequence has not
        x = einsum("batch embd, embd features -> batch features", first, self.weight)
        return jnp.tanh(named.biased(x, self.bias, "features"))


def last_token(hidden: jax.Array, segments: jax.Array | None) -> jax.Array:
    """hidden [batch, sequence, embd] of the last token of each row that is no padding -> [batch, embd]; of a
    row of padding alone, the first."""
    places = jnp.arange(hidden.shape[1])
    if segments is None:
        is_last = (places == hidden.shape[1] - 1)[:, None]
    else:
        own = jnp.where(named.lay(segments, "batch sequence") > 0, places, 0)
        is_last = (places == jnp.max(own, axis=1, keepdims=True))[:, :, None]
    return jnp.sum(jnp.where(is_last, hidden, 0), axis=1)  # no look-up, which a split sequence has not


class Classifier(nnx.Module):
    """weight x + bias, after dropout: a logit for each of as many classes as `labels`, in float32."""

    def __init__(
        self,
        labels: int,
        rate: float,
        sizes: Mapping[str, int],
        *,
        of_tokens: bool = False,
        biased: bool = True,
    ):
        own = {**sizes, "labels": labels}
        self.rate = rate
        self.rows = "batch sequence" if of_tokens else "batch"
        self.weight = Param("embd labels", Normal(0.02), own)
        self.bias = Param("labels", Constant(0.0), own) if biased else None

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """x [batch, embd], or of tokens [batch, sequence, embd] -> float32 [..., labels]."""
        x = named.lay(x, f"{self.rows} embd")
        if self.rate and dropout_key is not None:
            x = Dropout(self.rate, dropout_key)(x, f"{self.rows} embd")
        equation = f"{self.rows} embd, embd labels -> {self.rows} labels"
        out = einsum(equation, x, self.weight, dtype=jnp.float32)
        return out if self.bias is None else named.biased(out, self.bias, "labels")


def class_scores(
    logits: jax.Array, labels: jax.Array, axis: int = -1, weights: jax.Array | None = None
) -> Scores:
    """Cross-entropy of logits over `axis` against int32 labels, of their other dimensions; negative ones, and
    those at and beyond the number of classes, are not scored. weights: how much each of them counts."""
    others = [i for i in range(logits.ndim) if i != axis % logits.ndim]
    hit = jnp.expand_dims(jnp.arange(logits.shape[axis]), others) == jnp.expand_dims(labels, axis)
    picked = jnp.sum(jnp.where(hit, logits, 0.0), axis=axis)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    log_z = jnp.squeeze(top, axis) + jnp.log(jnp.sum(jnp.exp(logits - top), axis=axis))
    scored = (labels >= 0) & (labels < logits.shape[axis])
    each = jnp.where(scored, 1.0 if weights is None else weights, 0.0)
    right = jnp.where(picked == jnp.squeeze(top, axis), each, 0.0)
    return jnp.sum(jnp.where(each != 0, each * (log_z - picked), 0.0)), jnp.sum(each), jnp.sum(right)


def number_scores(values: jax.Array, labels: jax.Array) -> Scores:
    """Squared differences of numbers; labels that are NaN are not scored."""
    scored = ~jnp.isnan(labels)
    difference = jnp.where(scored, values - jnp.where(scored, labels, 0.0), 0.0)
    return jnp.sum(difference**2), jnp.sum(scored, dtype=jnp.float32), None


def independent_scores(logits: jax.Array, labels: jax.Array) -> Scores:
    """Binary cross-entropy of each class by itself against labels of the same shape, the probability of each;
    those that are NaN are not scored. Right is a logit above 0 where the label is above a half, and one that
    is not elsewhere."""
    scored = ~jnp.isnan(labels)
    wanted = jnp.where(scored, labels, 0.0)
    losses = jnp.maximum(logits, 0) - logits * wanted + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    right = scored & ((logits > 0) == (wanted > 0.5))
    total = jnp.sum(jnp.where(scored, losses, 0.0))
    return total, jnp.sum(scored, dtype=jnp.float32), jnp.sum(right, dtype=jnp.float32)
