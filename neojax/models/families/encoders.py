"""What BERT and ALBERT share: how they are put together, and the keys of their heads at Hugging Face."""

import re
from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError, suggest
from neojax.models.compute import Compute
from neojax.models.encoder_head import EncoderHead
from neojax.models.families.family import Parts, class_names
from neojax.models.families.gpt_neo import trunk
from neojax.models.families.labels import read_labels, read_problem, write_labels

BUFFERS = re.compile(r"embeddings\.(position_ids|token_type_ids)")
LAYER_NORMS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
"""As the first files of transformers had them, after TensorFlow."""

CLASSES = {
    "ForPreTraining": ("mlm", "pair"),
    "ForMaskedLM": ("mlm",),
    "ForSequenceClassification": ("sequence_classification",),
    "ForTokenClassification": ("token_classification",),
    "ForQuestionAnswering": ("question_answering",),
    "ForMultipleChoice": ("multiple_choice",),
    "Model": (),
}
"""End of the name of a class of transformers -> kinds of heads."""

WRITTEN = ("embedding.dropout", "head.kinds", "head.labels", "head.multilabel")
"""The keys of ours that `write_head` covers."""


def build(
    config: ModelConfig, sizes: Mapping[str, int], compute: Compute, *, pair_dropout: float = 0.0
) -> Parts:
    """The three parts of an encoder."""
    return *trunk(config, sizes, compute), EncoderHead(config, sizes, pair_dropout=pair_dropout)


def read_head(
    raw: Mapping[str, Any], source: str, architectures: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The kinds of heads by the class of the model, and the names of its classes. Raises `NeojaxError` for a
    class that is none of `architectures`, for a decoder, for positions of another kind, and for labels that
    disagree."""
    if raw.get("is_decoder"):
        raise NeojaxError(f"{source}: is_decoder=true is not supported; only an encoder is")
    if (kind := raw.get("position_embedding_type", "absolute")) != "absolute":
        raise NeojaxError(f"{source}: position_embedding_type {kind!r} is not supported; only 'absolute' is")
    found: dict[str, Any] = {"embedding.dropout": raw.get("hidden_dropout_prob", 0.1)}
    if names := class_names(raw, source):
        own = next((name for name in names if name in architectures), None)
        if own is None:
            raise NeojaxError(
                f"{source}: architectures {names}: there is no model of that kind here"
                f"{suggest(names[0], architectures)}"
            )
        found["head.kinds"] = list(architectures[own])
        found["head.multilabel"] = read_problem(raw, source, architectures[own])
    labels = read_labels(raw, source)
    return found if labels is None else {**found, "head.labels": labels}


def write_head(config: ModelConfig) -> dict[str, Any]:
    """The width of the MLP, for which transformers has no word but a number, and the names of the classes.
    Raises `NeojaxError` for rates of dropout that it cannot express."""
    if config.embedding.dropout != config.dropout:
        raise NeojaxError(
            f"model.embedding.dropout={config.embedding.dropout} cannot be exported beside model.dropout="
            f"{config.dropout}: transformers' {config.family} has one rate for both"
        )
    return {"intermediate_size": config.mlp_dim, **write_labels(config)}
