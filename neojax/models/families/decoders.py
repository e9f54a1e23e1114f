"""What the families of decoders share at Hugging Face: classes that say something of a text, and their
heads."""

from collections.abc import Callable, Mapping
from typing import Any

from neojax.config import HeadConfig, ModelConfig
from neojax.errors import NeojaxError
from neojax.models.families.family import class_names, nothing
from neojax.models.families.labels import read_labels, read_problem, write_labels

CLASSES = {
    "ForSequenceClassification": ("sequence_classification",),
    "ForTokenClassification": ("token_classification",),
    "ForQuestionAnswering": ("question_answering",),
}


def classes(
    stem: str,
    architecture: str,
    ends: tuple[str, ...] = tuple(CLASSES),
    *,
    of_tokens: str = "classifier",
    read: Callable[[Mapping[str, Any], str], dict[str, Any]] = nothing,
    write: Callable[[ModelConfig], dict[str, Any]] = nothing,
    written: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Fields of `HuggingFace` for a family that has, beside `architecture`, which predicts the next token and
    as which any other is read, the classes `stem` + each of `ends`. `of_tokens`: the name of the classifier
    of tokens. `read`, `write` and `written`: what of these fields is the family's own."""
    architectures = {architecture: ("lm",), **{f"{stem}{end}": CLASSES[end] for end in ends}}

    def read_all(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
        found = read(raw, source)
        own = next((name for name in class_names(raw, source) if name in architectures), architecture)
        if (kinds := architectures[own]) == ("lm",):
            return found
        labels = read_labels(raw, source)
        found |= {"head.kinds": list(kinds), "head.dropout": raw.get("classifier_dropout")}
        found["head.multilabel"] = read_problem(raw, source, kinds)
        return found if labels is None else {**found, "head.labels": labels}

    def write_all(config: ModelConfig) -> dict[str, Any]:
        found = write(config)
        if "lm" in config.head.kinds:
            for name in ("labels", "multilabel", "dropout"):
                if (value := getattr(config.head, name)) != getattr(HeadConfig, name):
                    raise NeojaxError(
                        f"model.head.{name}={value} cannot be exported: {architecture} has no classes"
                    )
            return found
        if config.head.dropout is not None:
            found["classifier_dropout"] = config.head.dropout
        return {**found, **write_labels(config)}

    return {
        "architecture": architecture,
        "architectures": architectures,
        "read": read_all,
        "write": write_all,
        "written": (*written, "head.kinds", "head.labels", "head.multilabel", "head.dropout"),
        "heads": {
            "score.weight": ("score.weight", "labels embd"),
            "classifier.weight": (f"{of_tokens}.weight", "labels embd"),
            "classifier.bias": (f"{of_tokens}.bias", "labels"),
            "span.weight": ("qa_outputs.weight", "labels embd"),
            "span.bias": ("qa_outputs.bias", "labels"),
        },
    }
