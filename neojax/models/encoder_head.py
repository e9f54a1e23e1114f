"""What stands after the stack of an encoder, or of a decoder that says something of texts: heads of
`model.head.kinds`, side by side."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.config import ModelConfig
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.kernels.chunked_loss import scored_count
from neojax.layout import named
from neojax.layout.named import Param
from neojax.models.classifiers import (
    Classifier,
    Pooler,
    Scores,
    class_scores,
    independent_scores,
    last_token,
    number_scores,
)
from neojax.models.losses import Losses, Sums
from neojax.models.masked_tokens import MaskedTokens
from neojax.models.norms import Identity, final_norm

OF_TOKENS = ("mlm", "token_classification", "question_answering")
"""Heads that read every token; the others read the pooled first one, or a decoder's last."""
PADDING = -1e9  # logit of what is no token, or no choice


class EncoderHead(nnx.Module):
    """The heads of an encoder, none or several, or the one of a decoder.

    Of a row as a whole an encoder knows what its pooler makes of the first token, and a decoder, as in
    transformers, what it has seen at the last; its classifier of rows, `score`, has no bias.

    | kind | logits, float32 | loss |
    |-|-|-|
    | `mlm` | [batch, sequence, vocab] | cross-entropy of the masked tokens |
    | `pair` | [batch, 2] | cross-entropy: whether B follows A (NSP), or which comes first (SOP) |
    | `sequence_classification` | [batch, labels] | of a class, cross-entropy; with one label squared \
differences; of labels in floats, binary cross-entropy of each |
    | `token_classification` | [batch, sequence, labels] | cross-entropy of each token's class |
    | `question_answering` | [batch, sequence, 2] | cross-entropy over tokens, of the answer's first and \
last |
    | `multiple_choice` | [batch, choices] | cross-entropy over choices |

    Losses are means over what is scored, and where there are two, `mlm` and `pair`, these are added. Without
    any the model gives its hidden states, and what the pooler makes of them.
    """

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int], *, pair_dropout: float = 0.0):
        self.kinds = kinds = config.head.kinds
        self.norm_f = Identity() if config.is_encoder else final_norm(config, sizes)
        self.labels = labels = len(config.head.labels)
        rate = config.head_dropout
        of_rows = not kinds or bool(set(kinds) - set(OF_TOKENS))
        self.pooler = Pooler(sizes) if of_rows and config.is_encoder else None
        self.mlm = MaskedTokens(config, sizes) if "mlm" in kinds else None
        self.pair = Classifier(2, pair_dropout, sizes) if "pair" in kinds else None
        self.span = Classifier(2, 0.0, sizes, of_tokens=True) if "question_answering" in kinds else None
        of_tokens, chooses = "token_classification" in kinds, "multiple_choice" in kinds
        classifies = of_tokens or chooses or "sequence_classification" in kinds
        scores = of_rows and not config.is_encoder
        count = 1 if chooses else labels
        self.score = Classifier(count, rate, sizes, biased=False) if scores else None
        classifier = Classifier(count, rate, sizes, of_tokens=of_tokens)
        self.classifier = classifier if classifies and not scores else None
        parts = self.pair, self.span, self.score, self.classifier
        self.draws = any(part.rate for part in parts if part is not None)  # whether it has dropout

    def logits(self, hidden: jax.Array, wte: Param) -> jax.Array:
        """Those of the first head, of which there has to be one."""
        return self._of(self.kinds[0], hidden, wte)

    def outputs(
        self, hidden: jax.Array, wte: Param, choices: int = 1, segments: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """The logits of each head by its kind, and `pooled` [batch, embd], float32, where there is a pooler;
        of `multiple_choice` each `choices` rows are those of one question. segments: 0 is padding; None:
        there is none."""
        found = {kind: self._of(kind, hidden, wte, choices=choices, segments=segments) for kind in self.kinds}
        if self.pooler is not None:
            found["pooled"] = self.pooler(hidden).astype(jnp.float32)
        return found

    def _of(
        self,
        kind: str,
        hidden: jax.Array,
        wte: Param,
        key: jax.Array | None = None,
        choices: int = 1,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        if kind == "mlm":
            assert self.mlm is not None
            return self.mlm.logits(hidden, wte)
        head = {"pair": self.pair, "question_answering": self.span}.get(kind, self.classifier or self.score)
        assert head is not None
        if kind in OF_TOKENS:
            return head(hidden, key)
        out = head(last_token(hidden, segments) if self.pooler is None else self.pooler(hidden), key)
        if kind != "multiple_choice":
            return out
        if segments is not None:  # a choice that fills up a question of fewer is none
            there = jnp.max(named.lay(segments, "batch sequence"), axis=1, keepdims=True) > 0
            out = jnp.where(there, out, PADDING)
        shape = len(out) // choices, choices
        return jax.lax.reshape(out, shape, out_sharding=named.sharding("batch choices"))

    def scored(self, batch: Batch) -> dict[str, jax.Array]:
        """How much of a batch of any leading dimensions each objective scores, by the name of its loss."""
        return {f"{self._prefix(kind)}loss": self._count(kind, batch) for kind in self.kinds}

    def _prefix(self, kind: str) -> str:
        return "" if kind == self.kinds[0] else f"{kind}_"

    def _count(self, kind: str, batch: Batch) -> jax.Array:
        if kind == "mlm":
            return scored_count(batch.targets >= 0, batch.weights)
        if kind == "token_classification":
            return scored_count((batch.targets >= 0) & (batch.targets < self.labels), batch.weights)
        labels = self._labels(kind, batch)
        if jnp.issubdtype(labels.dtype, jnp.floating):
            return jnp.sum(~jnp.isnan(labels), dtype=jnp.float32)
        classes = {"pair": 2, "sequence_classification": self.labels}
        axis = {"question_answering": -1, "multiple_choice": -2}
        below = classes[kind] if kind in classes else batch.tokens.shape[axis[kind]]
        return jnp.sum((labels >= 0) & (labels < below), dtype=jnp.float32)

    def _labels(self, kind: str, batch: Batch) -> Any:
        if batch.labels is None:
            raise NeojaxError(
                f"model.head.kinds has {kind}, but the data has no labels for it; leave it out of the kinds, "
                "or give data with labels"
            )
        return jnp.asarray(batch.labels)

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
        """The losses of what `batch` scores. Those of the first head are called loss and accuracy; those of a
        second begin with its kind."""
        if entmax or not self.kinds:
            raise NeojaxError(
                f"model.head.kinds={list(self.kinds)} cannot be trained"
                + (" with train.loss=entmax, which is for the head lm" if entmax else "; name a head")
            )
        objectives, sums = [], Sums()
        for number, kind in enumerate(self.kinds):
            own = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
            objective, (total, count, right) = self._scores(kind, hidden, wte, batch, z_loss, own)
            prefix = self._prefix(kind)
            objectives.append((f"{prefix}loss", objective, count))
            sums[f"{prefix}loss"] = total, count
            if right is not None:
                sums[f"{prefix}accuracy"] = right, count
        (_, first, _), *others = objectives
        return Losses(first, sums, {name: (objective, count) for name, objective, count in others})

    def _scores(
        self, kind: str, hidden: jax.Array, wte: Param, batch: Batch, z_loss: float, key: jax.Array | None
    ) -> tuple[jax.Array, Scores]:
        """(what is trained, scores) of one head."""
        if kind == "mlm":
            assert self.mlm is not None
            return self.mlm.scores(hidden, wte, batch, z_loss)
        if kind == "token_classification":
            targets = named.lay(jnp.asarray(batch.targets), "batch sequence")
            weights = None if batch.weights is None else named.lay(batch.weights, "batch sequence")
            scores = class_scores(self._of(kind, hidden, wte, key), targets, weights=weights)
            return scores[0], scores
        labels = self._labels(kind, batch)
        labels = named.lay(labels, "batch" if labels.ndim == 1 else "batch labels")
        logits = self._of(kind, hidden, wte, key, len(hidden) // len(labels), batch.segments)
        if kind == "question_answering":
            if batch.segments is not None:  # so that a row's loss does not hang on how long the batch is
                there = named.lay(batch.segments, "batch sequence") > 0
                logits = jnp.where(there[:, :, None], logits, PADDING)
            scores = class_scores(logits, labels, axis=1)
        elif not jnp.issubdtype(labels.dtype, jnp.floating):
            scores = class_scores(logits, labels)
        elif labels.ndim == 1:
            scores = number_scores(logits[:, 0], labels)
        else:
            scores = independent_scores(logits, labels)
        return scores[0], scores
