"""The data of a gpt-neo config: its `datasets`, through dataset_configs/ or as globs, and what of it is not
here."""

import glob
import os
from pathlib import Path
from typing import Any, NamedTuple

from neojax.convert.hf_config import read_json
from neojax.convert.keys import Conversion, Keys
from neojax.data.sources import ABSENT
from neojax.errors import NeojaxError

_FORMS = "a name, [name, n, mode, weight] or [train glob, eval glob, n, mode, weight]"


class _Dataset(NamedTuple):
    name: str
    train: str
    validation: str
    tokenizer: str
    weight: float


def convert_data(keys: Keys, out: Conversion) -> None:
    """data.train, data.validation (where the config evaluates) and data.tokenizer."""
    try:
        datasets = _datasets(keys)
    except NeojaxError:
        if not out.is_given("data.train"):
            raise
        datasets = []
    names = ", ".join(dataset.name for dataset in datasets)
    train = [{"path": d.train, "weight": d.weight} for d in datasets]
    validation = [{"path": d.validation} for d in datasets if d.validation]
    tokenizer = next((d.tokenizer for d in datasets if d.tokenizer), None)
    out.put("data.train", lambda: train or None, f"datasets: {names}")
    out.put(
        "data.validation",
        lambda: (keys.count("eval_steps", 0) and validation) or None,
        "eval_path of the dataset",
    )
    if out.is_given("data.train") and not out.is_given(
        "data.tokenizer"
    ):  # other data, of which the ids mean other text
        out.ignored += [f"tokenizer_path {tokenizer} (data.train is given)"] if tokenizer else []
        return
    out.put("data.tokenizer", lambda: tokenizer, "tokenizer_path of the dataset")


def _datasets(keys: Keys) -> list[_Dataset]:
    datasets = keys.get("datasets") or []
    datasets = [datasets] if isinstance(datasets, str) else datasets
    if not isinstance(datasets, list):
        raise keys.wrong("datasets", f"a list, of {_FORMS}", datasets)
    folder = keys.text("data_path")
    return [_dataset(keys, entry, folder) for entry in datasets]


def _dataset(keys: Keys, entry: Any, folder: str) -> _Dataset:
    """One entry of `datasets`. gpt-neo took globs, below `data_path`, before it had dataset_configs/."""
    name, *rest = entry if isinstance(entry, list) and entry else [entry]
    is_globs = len(rest) == 4
    evaluation = rest.pop(0) if is_globs else ""
    weight = 1.0 if len(rest) < 3 or rest[2] is None else keys.as_number("datasets", rest[2])
    if (
        not (isinstance(name, str) and name.isprintable() and name)
        or not isinstance(evaluation or "", str)
        or len(rest) > 3
    ):
        raise keys.wrong("datasets", _FORMS, entry)
    if is_globs:
        train, evaluation = (_beside(keys.path, _below(folder, text or "")) for text in (name, evaluation))
        return _Dataset(name, train, evaluation, "", weight)
    source = _find(keys.path, name)
    if (
        source is None
    ):  # training says so, in `training.inputs.check_paths`; to look at the model one needs no data
        return _Dataset(name, f"{ABSENT}{name}.json", "", "", weight)
    found = Keys(source, read_json(source))
    train, evaluation = (_beside(keys.path, found.text(key)) for key in ("path", "eval_path"))
    is_file = not found.flag("tokenizer_is_pretrained")
    tokenizer = _beside(keys.path, found.text("tokenizer_path")) if is_file else ""
    return _Dataset(name, train, evaluation, tokenizer, weight)


def _find(config: Path, name: str) -> Path | None:
    """The file of dataset `name`: beside the config, or where gpt-neo looked from its checkout."""
    for folder in (config.parent, config.parent.parent, Path("configs"), Path(".")):
        path = folder / "dataset_configs" / f"{name}.json"
        if os.path.isfile(path):
            return path
    return None


def _below(folder: str, text: str) -> str:
    """`text` below `folder`, as gpt-neo joined them."""
    return text if "://" in text or not text else os.path.join(folder, text)


def _beside(config: Path, text: str) -> str:
    """A path as it is, or beside the config where only that leads anywhere."""
    if not text or "://" in text or Path(text).is_absolute() or "\0" in text:
        return text
    beside = str(config.parent / text)
    return beside if not glob.glob(text) and glob.glob(beside) else text
