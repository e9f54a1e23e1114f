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
from neojax.data.labelled import class_of, read_rows
from neojax.errors import NeojaxError
from neojax.loading import load
from neojax.output import complain, json_line
from neojax.sampling.predict import answers, check_predicts, examples_of, prediction
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
    rows = {file: read_rows(file, data, labelled=False) for file in files}  # before the weights are read
    model = load(args.source, mesh=mesh_of(args.source, mesh))
    check_predicts(model)
    names = model.config.head.labels
    for file, own in rows.items():
        with ending_at_once():
            logits = answers(model, examples_of(model, [row.texts for row in own], data.max_tokens))
        for said in (prediction(model, each) for each in logits):
            best = said.scores.get(str(said.label))
            plain = f"{said.label:.6g}" if best is None else f"{said.label}\t{best:.4f}"
            print(json_line(asdict(said)) if args.json else plain, flush=True)
        if all(row.label is not None for row in own):
            is_number = len(names) == 1
            labels = np.array([row.label if is_number else class_of(row, names) for row in own])
            found = measured(TASKS[data.task].metrics, logits, labels)
            complain(f"{file}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))


def _data(source: str, overrides: list[str]) -> DataConfig:
    """The keys of `data` of a run, or those that a model of Hugging Face's is read with."""
    path = place(source)
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    config = configs.of_folder(run)
    labels = config.model.head.labels
    usual = "regression" if len(labels) == 1 else "classification"
    kept = configuration.to_dict(config.data) if config.data.task != "none" else {"task": usual}
    kept |= {"train": [], "validation": []}
    raw: dict[str, Any] = {"data": kept, "model": configuration.to_dict(config.model)}
    return configuration.from_dict(raw, overrides, source="command line").data
