"""A configuration of any format that neojax reads: its own YAML, or a gpt-neo JSON; with the model of
`init_from`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neojax import config as configuration
from neojax.config import Config
from neojax.convert import gpt_neo, hf_config
from neojax.errors import NeojaxError
from neojax.runs.run_dir import CONFIG, is_run_dir
from neojax.storage.remote import place


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration and applies `section.key=value` overrides. Raises `NeojaxError`.

    With `train.init_from`, keys of `model` that are not given are those of the model there. A configuration
    that a run wrote has them all, and goes on where that is gone.
    """
    overrides = list(overrides)
    given = configuration.override({}, overrides, str(path))  # of a gpt-neo config, what is given is not read
    raw = gpt_neo.load(path, given) if Path(path).suffix == ".json" else configuration.read_yaml(path)
    said = configuration.override(raw, overrides, str(path))
    origin = configuration.value_at(said, "train.init_from")
    is_resolved = Path(path).name == CONFIG and is_run_dir(Path(path).parent)
    if isinstance(origin, str) and origin and not is_resolved:
        there = model_of(origin)
        family = configuration.value_at(said, "model.family", there["family"])
        if family != there["family"]:
            raise NeojaxError(
                f"{path}: model.family is {family}, but the model of train.init_from={origin} is a "
                f"{there['family']}; leave the keys of model out to take them from there"
            )
        raw, overrides = configuration.override(raw, overrides, str(path), {"model": there}), []
    return configuration.from_dict(raw, overrides, source=str(path))


def of_folder(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of the run directory `path`, or, of a Hugging Face directory, one with the model
    there. Raises `NeojaxError`."""
    if (path / CONFIG).is_file():
        return configuration.of_run(path, overrides)
    if hf_config.is_hf_dir(path):
        model = configuration.to_dict(hf_config.read_config(path))
        return configuration.from_dict({"model": model}, overrides, source=str(path))
    raise NeojaxError(
        f"{path} is neither a run directory ({CONFIG}) nor a Hugging Face one ({hf_config.CONFIG})"
    )


def model_of(path: str) -> dict[str, Any]:
    """The `model` section of the Hugging Face or run directory (or RUN/checkpoints/STEP) at `path`."""
    folder = place(path)
    if hf_config.is_hf_dir(folder):
        return configuration.to_dict(hf_config.read_config(folder))
    for run in (folder, folder.parent.parent):
        if (run / "config.yml").is_file():
            return configuration.to_dict(configuration.of_run(run).model)
    cause = "is neither a Hugging Face directory (config.json) nor a run (config.yml)"
    raise NeojaxError(f"train.init_from: {path} {cause if folder.exists() else 'does not exist'}")
