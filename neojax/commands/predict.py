"""`neojax predict RUN_OR_DIR FILE ... [--json] [mesh.key=value ...]`."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from neojax import config as configuration
from neojax.commands.opening import add_adapter, ending_at_once, opened
from neojax.config import DataConfig
from neojax.config.tasks import TASKS
from neojax.data.answers import Reply
from neojax.data.choices import Chosen, read_choices
from neojax.data.examples import Rows
from neojax.data.labelled import Row, labels_of, read_rows
from neojax.data.questions import Question, read_questions
from neojax.data.squad_scores import squad_scores
from neojax.data.tagged import Tagged, entity_scores, read_tagged
from neojax.data.task_rows import cut_rows, windows_told
from neojax.errors import NeojaxError
from neojax.files import is_free, named, new_folder
from neojax.loading import config_at
from neojax.models import Transformer
from neojax.output import complain, json_line
from neojax.sampling.answered import answers
from neojax.sampling.predict import (
    Prediction,
    answered,
    check_kinds,
    check_predicts,
    choices_of,
    examples_of,
    prediction,
    spans_for,
    taggings,
)
from neojax.training.measures import measured


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax predict`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_DIR",
        help="a run with data.task, RUN/checkpoints/STEP, or a Hugging Face directory with a head for "
        "classes",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="rows as data.train has them (.jsonl, .json, .tsv, .csv, .txt, .conll), with labels or without; "
        "data.text=COLUMN and such among them say where the text is, mesh.key=value what to run on",
    )
    add_adapter(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="of questions: write predictions.json, nbest_predictions.json and, where there may be no "
        "answer, null_odds.json into a new folder, in SQuAD's form, and print nothing",
    )
    parser.set_defaults(overrides=[])  # those behind options


def run(args: Namespace) -> None:
    """Prints what the model says of every row; and on stderr, of a file with labels, how good that is."""
    given = [*args.files, *args.overrides]
    overrides = [word for word in given if "=" in word and word.startswith(("mesh.", "data."))]
    files = [word for word in given if word not in overrides]
    if not files:
        raise NeojaxError("no file is given; name one with rows of text, such as rows.jsonl")
    mesh = [word for word in overrides if word.startswith("mesh.")]
    data = _data(args, [word for word in overrides if word not in mesh])
    task = TASKS[data.task]
    asks = task.head == "question_answering"
    if args.out and not asks:
        raise NeojaxError(f"--out {args.out} is for a model that answers questions; leave it out")
    if args.out and len(files) > 1:
        raise NeojaxError(f"--out {args.out} is for the questions of one file; name one")
    if args.out and not is_free(named(args.out, "--out")):
        raise NeojaxError(f"{args.out} exists already; remove it or name another place")
    read, say = BY_HEAD[task.head]
    rows = [(file, read(file, data, labelled=False)) for file in files]  # before the weights are read
    model = opened(args, mesh)
    check_predicts(model)
    for file, own in rows:
        found = say(model, own, data, args, file)
        if found and not jax.process_index():
            complain(
                f"{file}: " + ", ".join(f"{name} {_digits(name, value)}" for name, value in found.items())
            )


def _print(line: str) -> None:
    """Prints a line, of several processes the first alone."""
    if not jax.process_index():
        print(line, flush=True)


def _digits(name: str, value: float) -> str:
    """A metric with four; a threshold, which is one question's own difference, with all, to be given back."""
    return repr(value) if name.endswith("_threshold") else f"{value:.4f}"


def _classify(
    model: Transformer, rows: list[Row], data: DataConfig, args: Namespace, file: str
) -> dict[str, float]:
    """Prints a line for each row; the metrics where all have labels. Raises `NeojaxError` for one that is
    none of the model's, before anything is printed."""
    labels = None
    if all(row.label is not None for row in rows):
        labels = labels_of(rows, None if TASKS[data.task].is_number else model.config.head.labels)
    examples = examples_of(model, [row.texts for row in rows], data.max_tokens)
    _tell_cut(file, examples)
    with ending_at_once():
        logits = answers(model, examples)
    for said in (prediction(model, each) for each in logits):
        _print(json_line(asdict(said)) if args.json else _plain(said))
    return {} if labels is None else measured(TASKS[data.task].metrics, np.stack(logits), labels)


def _plain(said: Prediction) -> str:
    if isinstance(said.label, float):
        return f"{said.label:.6g}"
    names = [said.label] if isinstance(said.label, str) else said.label
    return "\t".join(f"{name}\t{said.scores[name]:.4f}" for name in names)


def _tag(
    model: Transformer, rows: list[Tagged], data: DataConfig, args: Namespace, file: str
) -> dict[str, float]:
    """Prints a line for each word, and an empty one behind each row; the metrics where all have tags."""
    with ending_at_once():
        found, examples = taggings(model, [row.words for row in rows], data.max_tokens)
    _tell_cut(file, examples)
    for said in found:
        lines = [f"{word}\t{tag}" for word, tag in zip(said.words, said.tags)]
        _print(json_line(asdict(said)) if args.json else "\n".join([*lines, ""]))
    if any(row.tags is None for row in rows):
        return {}
    return entity_scores([said.tags for said in found], [row.tags or [] for row in rows])


def _choose(
    model: Transformer, rows: list[Chosen], data: DataConfig, args: Namespace, file: str
) -> dict[str, float]:
    """Prints a line for each row: the number of the choice, how probable it is, and its text; the accuracy
    where all have a right one."""
    with ending_at_once():
        found, encoded = choices_of(model, rows, data.max_tokens)
    _tell_cut(file, encoded)
    for said in found:
        plain = f"{said.choice}\t{said.scores[said.choice]:.4f}\t{' '.join(said.text.split())}"
        _print(json_line(asdict(said)) if args.json else plain)
    if any(row.label is None for row in rows):
        return {}
    return {"accuracy": float(np.mean([said.choice == row.label for said, row in zip(found, rows)]))}


def _answer(
    model: Transformer, questions: list[Question], data: DataConfig, args: Namespace, file: str
) -> dict[str, float]:
    """Prints, or writes, the answer of each question; the metrics where all have right ones."""
    spans = spans_for(model, questions, data.squad, data.max_tokens)
    for line in [] if jax.process_index() else windows_told(file, spans, data)[1:]:
        complain(line)
    may_lack = TASKS[data.task].may_lack
    with ending_at_once():
        found = answered(model, spans, data.squad, may_lack)
    if args.out and not jax.process_index():
        _write(args.out, found)
    for said in () if args.out else found:
        plain = f"{said.id}\t{said.answer.probability:.4f}\t{' '.join(said.answer.text.split())}"
        _print(json_line(_of_reply(said)) if args.json else plain)
    if any(each.answers is None for each in questions):
        return {}
    return squad_scores(questions, found, may_lack)


def _of_reply(said: Reply) -> dict[str, Any]:
    own = said.answer
    told = {"id": said.id, "text": own.text, "score": own.probability, "start": own.start, "stop": own.stop}
    if said.null_score_diff is not None:
        told["null_score_diff"] = said.null_score_diff
    return {**told, "n_best": [span._asdict() for span in said.n_best]}


def _write(folder: str, found: list[Reply]) -> None:
    """The answers in the files that run_squad.py writes and SQuAD's evaluate-v2.0.py reads."""
    keys = "text", "probability", "start_logit", "end_logit"
    files: dict[str, Any] = {
        "predictions": {said.id: said.answer.text for said in found},
        "nbest_predictions": {
            said.id: [{key: getattr(span, key) for key in keys} for span in said.n_best] for said in found
        },
    }
    if all(said.null_score_diff is not None for said in found):
        files["null_odds"] = {said.id: said.null_score_diff for said in found}
    with new_folder(folder) as made:
        for name, content in files.items():
            text = json.dumps(content, ensure_ascii=False, indent=1)
            (made / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def _tell_cut(file: str, rows: Rows) -> None:
    if rows.n_cut and not jax.process_index():
        complain(f"{file}: {cut_rows(rows)}")


BY_HEAD: dict[str, tuple[Any, Any]] = {
    "sequence_classification": (read_rows, _classify),
    "token_classification": (read_tagged, _tag),
    "question_answering": (read_questions, _answer),
    "multiple_choice": (read_choices, _choose),
}
"""The kind of a head -> what reads its rows, and what says something of them."""


def _data(args: Namespace, overrides: list[str]) -> DataConfig:
    """The keys of `data` of a run, or those that a model of Hugging Face's is read with."""
    config = config_at(args.source, args.adapter)
    check_kinds(config.model.head.kinds)  # before its files are read as what they may not be
    labels = config.model.head.labels
    usual = "regression" if len(labels) == 1 else "classification"
    if config.model.head.multilabel:
        usual = "multilabel"
    others = {
        "token_classification": "tagging",
        "question_answering": "squad",
        "multiple_choice": "multiple_choice",
    }
    usual = others.get(next(iter(config.model.head.kinds), ""), usual)
    kept = configuration.to_dict(config.data) if config.data.task != "none" else {"task": usual}
    kept |= {"train": [], "validation": []}
    raw: dict[str, Any] = {"data": kept, "model": configuration.to_dict(config.model)}
    found = configuration.from_dict(raw, overrides, source="command line").data
    kind = {task: (own.head, own.is_number, own.multilabel) for task, own in TASKS.items()}
    its = str(kept["task"])
    if found.task != its and kind.get(found.task) != kind[its]:
        raise NeojaxError(
            f"data.task={found.task}: {args.source} is a model for data.task={its}; leave it out"
        )
    return found
