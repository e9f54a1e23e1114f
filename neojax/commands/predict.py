"""`neojax predict RUN_OR_DIR FILE ... [--json] [mesh.key=value ...]`."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

import numpy as np

from neojax import config as configuration
from neojax.commands.sample import ending_at_once, mesh_of
from neojax.config import DataConfig
from neojax.config.tasks import TASKS
from neojax.convert import configs
from neojax.data.labelled import Row, class_of, read_rows
from neojax.data.tagged import Tagged, entity_scores, read_tagged
from neojax.errors import NeojaxError
from neojax.loading import load
from neojax.models import Transformer
from neojax.output import complain, json_line
from neojax.sampling.predict import answers, check_predicts, examples_of, prediction, taggings
from neojax.storage.remote import place
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
        help="rows of text, as data.train has them (.jsonl, .tsv, .csv, .txt), with labels or without; "
        "data.text=COLUMN and such among them say where the text is, mesh.key=value what to run on",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")
    parser.set_defaults(overrides=[])  # those behind options


def run(args: Namespace) -> None:
    """Prints what the model says of every row; and on stderr, of a file with labels, how good that is."""
    given = [*args.files, *args.overrides]
    overrides = [word for word in given if "=" in word and word.startswith(("mesh.", "data."))]
    files = [word for word in given if word not in overrides]
    if not files:
        raise NeojaxError("no file is given; name one with rows of text, such as rows.jsonl")
    mesh = [word for word in overrides if word.startswith("mesh.")]
    data = _data(args.source, [word for word in overrides if word not in mesh])
    tags = TASKS[data.task].head == "token_classification"
    read: Any = read_tagged if tags else read_rows
    rows = {file: read(file, data, labelled=False) for file in files}  # before the weights are read
    model = load(args.source, mesh=mesh_of(args.source, mesh))
    check_predicts(model)
    for file, own in rows.items():
        found = (_tag if tags else _classify)(model, own, data, args.json)
        if found:
            complain(f"{file}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


def _classify(model: Transformer, rows: list[Row], data: DataConfig, as_json: bool) -> dict[str, float]:
    """Prints a line for each row; the metrics where all have labels. Raises `NeojaxError` for one that is
    none of the model's, before anything is printed."""
    labels = None
    if all(row.label is not None for row in rows):
        names = model.config.head.labels
        labels = np.array([row.label if len(names) == 1 else class_of(row, names) for row in rows])
    with ending_at_once():
        logits = answers(model, examples_of(model, [row.texts for row in rows], data.max_tokens))
    for said in (prediction(model, each) for each in logits):
        best = said.scores.get(str(said.label))
        plain = f"{said.label:.6g}" if best is None else f"{said.label}\t{best:.4f}"
        print(json_line(asdict(said)) if as_json else plain, flush=True)
    return {} if labels is None else measured(TASKS[data.task].metrics, np.stack(logits), labels)


def _tag(model: Transformer, rows: list[Tagged], data: DataConfig, as_json: bool) -> dict[str, float]:
    """Prints a line for each word, and an empty one behind each row; the metrics where all have tags."""
    with ending_at_once():
        found = taggings(model, [row.words for row in rows], data.max_tokens)
    for said in found:
        lines = [f"{word}\t{tag}" for word, tag in zip(said.words, said.tags)]
        print(json_line(asdict(said)) if as_json else "\n".join([*lines, ""]), flush=True)
    if any(row.tags is None for row in rows):
        return {}
    return entity_scores([said.tags for said in found], [row.tags or [] for row in rows])


def _data(source: str, overrides: list[str]) -> DataConfig:
    """The keys of `data` of a run, or those that a model of Hugging Face's is read with."""
    path = place(source)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    config = configs.of_folder(run)
    labels = config.model.head.labels
    usual = "regression" if len(labels) == 1 else "classification"
    usual = "tagging" if config.model.head.kinds == ("token_classification",) else usual
    kept = configuration.to_dict(config.data) if config.data.task != "none" else {"task": usual}
    kept |= {"train": [], "validation": []}
    raw: dict[str, Any] = {"data": kept, "model": configuration.to_dict(config.model)}
    found = configuration.from_dict(raw, overrides, source="command line").data
    kind = {task: (own.head, own.is_number) for task, own in TASKS.items()}
    its = str(kept["task"])
    if found.task != its and kind.get(found.task) != kind[its]:
        raise NeojaxError(f"data.task={found.task}: {source} is a model for data.task={its}; leave it out")
    return found
