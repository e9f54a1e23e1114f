"""The tasks that a model is fine-tuned to: what a row of labelled text holds, how answers are measured, and
the settings that are usual.

GLUE's tasks are https://arxiv.org/abs/1804.07461, with the files and metrics of its site. What is usual is
from BERT's paper, appendix A.3 (https://arxiv.org/abs/1810.04805), and ALBERT's, appendix A.4
(https://arxiv.org/abs/1909.11942), whose steps stand here as epochs of GLUE's and SQuAD's own files; of
SQuAD, from the README of google-research/bert.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from neojax.errors import NeojaxError


@dataclass(frozen=True)
class Task:
    """`head`: the kind of the model's head. `metrics`: how answers to held-out rows are measured, beside the
    loss. `labels`: names of the classes in their order; none: as the rows have them. `columns`: the numbers
    of the columns with text, second text (None: there is none) and label, of files without a header.
    `multilabel`: whether a row has any number of classes."""

    head: str
    metrics: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    columns: tuple[int | None, ...] = ()
    multilabel: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the answer is a number."""
        return "pearson" in self.metrics

    @property
    def is_named(self) -> bool:
        """Whether answers are among classes that have names."""
        return self.head in ("sequence_classification", "token_classification") and not self.is_number

    @property
    def may_lack(self) -> bool:
        """Whether a question may have no answer."""
        return "best_f1" in self.metrics


_ROW, _YES = "sequence_classification", ("0", "1")
_ENTAILED = ("entailment", "not_entailment")
TASKS = {
    "sft": Task("lm"),
    "classification": Task(_ROW, ("accuracy", "f1")),
    "multilabel": Task(_ROW, ("micro_f1", "macro_f1"), multilabel=True),
    "regression": Task(_ROW, ("pearson", "spearman")),
    "multiple_choice": Task("multiple_choice", ("accuracy",)),
    "tagging": Task("token_classification", ("precision", "recall", "f1")),
    "squad": Task("question_answering", ("exact_match", "f1")),
    "squad_v2": Task("question_answering", ("exact_match", "f1", "best_exact_match", "best_f1")),
    "cola": Task(_ROW, ("accuracy", "matthews"), _YES, (3, None, 1)),
    "sst2": Task(_ROW, ("accuracy",), _YES),
    "mrpc": Task(_ROW, ("accuracy", "f1"), _YES),
    "stsb": Task(_ROW, ("pearson", "spearman")),
    "qqp": Task(_ROW, ("accuracy", "f1"), _YES),
    "mnli": Task(_ROW, ("accuracy",), ("contradiction", "entailment", "neutral")),
    "qnli": Task(_ROW, ("accuracy",), _ENTAILED),
    "rte": Task(_ROW, ("accuracy",), _ENTAILED),
    "wnli": Task(_ROW, ("accuracy",), _YES),
}
"""By `data.task`."""


def metrics_of(task: str) -> tuple[str, ...]:
    """The names of what `data.task` measures beside the loss; nothing for none."""
    return TASKS[task].metrics if task in TASKS else ()


_USUAL = {
    "learning_rate": 2e-5,
    "batch_size": 32,
    "epochs": 3,
    "warmup_share": 0.1,
    "schedule": "linear",
    "min_lr_ratio": 0.0,
    "weight_decay": 0.01,
    "beta2": 0.999,
    "epsilon": 1e-6,
}
_SQUAD: tuple[float, ...] = (3e-5, 12, 2, 0.1)
_ALBERT: dict[str, tuple[float, ...]] = {
    "squad": (5e-5, 48, 2, 0.1),
    "squad_v2": (3e-5, 48, 3, 0.1),
    "cola": (1e-5, 16, 10, 0.06),
    "stsb": (2e-5, 16, 10, 0.06),
    "sst2": (1e-5, 32, 10, 0.06),
    "mnli": (3e-5, 128, 3.26, 0.1),
    "qnli": (1e-5, 32, 10.1, 0.06),
    "qqp": (5e-5, 128, 4.9, 0.07),
    "rte": (3e-5, 32, 10.3, 0.25),
    "mrpc": (2e-5, 32, 7, 0.25),
    "wnli": (2e-5, 16, 50, 0.125),
}
INSTEAD = {"epochs": "steps", "warmup_share": "warmup_steps"}
"""Keys of `train` for runs with data.task, which stand in the place of others."""


def recipe_of(task: Any, family: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `train` that are usual for `task` and stand where they are not given; of two that say the
    same, that which is."""
    if task not in TASKS:
        return {}
    found = dict(_USUAL)
    own = _SQUAD if TASKS[task].head == "question_answering" else None
    own = _ALBERT.get(task, own) if family == "albert" else own
    found |= dict(zip(("learning_rate", "batch_size", "epochs", "warmup_share"), own or ()))
    return {key: value for key, value in found.items() if INSTEAD.get(key) not in given}


def check_task(config: Any) -> None:
    """Raises `NeojaxError` for keys that do not go with `data.task`, or only with it."""
    data, train, usual = config.data, config.train, type(config.data)()
    if data.task == "none":
        for name in ("text", "text2", "label", "max_tokens"):
            if (value := getattr(data, name)) != getattr(usual, name):
                raise NeojaxError(
                    f"data.{name}={value} is for rows of labelled text; set data.task, such as "
                    "data.task=classification, or leave it out"
                )
        _check_squad(data.squad, usual.squad, "data.task=none")
        for name in INSTEAD:
            if value := getattr(train, name):
                raise NeojaxError(
                    f"train.{name}={value} is for rows of labelled text; set data.task, or give "
                    f"train.{INSTEAD[name]} instead"
                )
        return
    given = f"data.task={data.task}"
    if config.model.head.multilabel != TASKS[data.task].multilabel:
        raise NeojaxError(
            f"{given} with model.head.multilabel={str(config.model.head.multilabel).lower()}: "
            "data.task=multilabel is for rows of any number of classes; change one of the two"
        )
    _check_squad(data.squad, type(data.squad)(), given)
    if data.task == "sft":
        if config.model.is_encoder:
            raise NeojaxError(f"{given} is for models that continue a text; a {config.model.family} does not")
        if named := [name for name in ("text", "text2", "label") if getattr(data, name)]:
            raise NeojaxError(
                f"{given}: `neojax prepare --format sft` has read the rows; leave data.{named[0]} out"
            )
    for name in ("pairs", "isolate_documents"):
        if (value := getattr(data, name)) != getattr(usual, name):
            raise NeojaxError(f"{given}: a row is one example; leave data.{name}={value} out")
    if split := next((s.split for s in (*data.train, *data.validation) if s.split), ""):
        raise NeojaxError(f"{given}: split={split} is for token stores; name a file for each use")
    if any(source.weight != 1 for source in data.train):
        raise NeojaxError(f"{given}: every row of data.train is seen once in an epoch; leave weights out")
    if train.mlm_mask_id is not None:
        raise NeojaxError(f"{given}: no token is masked; leave train.mlm_mask_id out")
    if train.loss != "cross_entropy":
        raise NeojaxError(f"{given}: train.loss={train.loss} is for the head lm; leave it out")
    if data.max_tokens > config.model.n_ctx:
        raise NeojaxError(
            f"data.max_tokens={data.max_tokens} is more than model.n_ctx={config.model.n_ctx}; lower it"
        )


def _check_squad(squad: Any, usual: Any, given: str) -> None:
    """Raises `NeojaxError` for keys of answers that do nothing where `data.task` is as `given`."""
    task = given.partition("=")[2]
    answers = task in TASKS and TASKS[task].head == "question_answering"
    for field in fields(squad):
        if (value := getattr(squad, field.name)) == getattr(usual, field.name):
            continue
        if not answers:
            raise NeojaxError(
                f"data.squad.{field.name}={value} is for data.task=squad and squad_v2; leave it out"
            )
        if field.name == "null_score_diff_threshold" and not TASKS[task].may_lack:
            raise NeojaxError(
                f"data.squad.{field.name}={value} is for questions without an answer; set "
                "data.task=squad_v2, or leave it out"
            )
