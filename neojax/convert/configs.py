"""A configuration of any format that neojax reads: its own YAML, a gpt-neo JSON, or GPT-NeoX's YAML; with the
model of `init_from`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from neojax import config as configuration
from neojax.config import Config
from neojax.config.tasks import TASKS
from neojax.convert import gpt_neo, hf_config, neox
from neojax.convert.neox_checkpoint import refuse_checkpoint
from neojax.convert.peft_files import base_of, is_adapter_dir
from neojax.errors import NeojaxError
from neojax.runs.run_dir import CONFIG, is_run_dir
from neojax.storage.remote import is_remote, place


def load(
    paths: str | Path | Sequence[str | Path], overrides: Iterable[str] = (), *, asks: bool = True
) -> Config:
    """Reads a configuration, or several of GPT-NeoX that are merged, and applies `section.key=value`
    overrides. Raises `NeojaxError`.

    With `train.init_from`, keys of `model` that are not given are those of the model there. A configuration
    that a run wrote has them all, and goes on where that is gone. `asks`: whether it is an error that a
    GPT-NeoX config does not tell the batch of a step (`neox_mesh.convert_batch`).
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    path, source = paths[0], " + ".join(map(str, paths))
    overrides = list(overrides)
    given = configuration.override({}, overrides, source)  # of another's config, what is given is not read
    if is_neox(paths):
        raw: Any = neox.load(paths, given, asks)
    elif gpt_neo.is_config(path):
        raw = gpt_neo.load(path, given)
    else:
        raw = configuration.read_yaml(path)
    said = configuration.override(raw, overrides, source)
    origin = configuration.value_at(said, "train.init_from")
    is_resolved = Path(path).name == CONFIG and is_run_dir(Path(path).parent)
    if isinstance(origin, str) and origin and not is_resolved:
        there = model_of(origin)
        family = configuration.value_at(said, "model.family", there["family"])
        if family != there["family"]:
            raise NeojaxError(
                f"{source}: model.family is {family}, but the model of train.init_from={origin} is a "
                f"{there['family']}; leave the keys of model out to take them from there"
            )
        task = TASKS.get(str(configuration.value_at(said, "data.task")))
        kind = there["head"].get("kinds"), there["head"].get("multilabel", False)
        if task is not None and kind != ([task.head], task.multilabel):
            there["head"] = {
                "dropout": there["head"]["dropout"]
            }  # the head is another, and so are its labels
        raw, overrides = configuration.override(raw, overrides, source, {"model": there}), []
    found = configuration.from_dict(raw, overrides, source=source)
    configuration.check_unused(found)
    return found


def is_neox(paths: Sequence[str | Path]) -> bool:
    """Whether `paths` name configs of GPT-NeoX: several do, and one that has its keys. Raises `NeojaxError`
    where it cannot be read."""
    path = neox.located(paths[0])
    if len(paths) > 1:
        return True
    if is_remote(path) or Path(path).suffix not in (".json", ".yml", ".yaml"):
        return False
    raw = hf_config.read_json(path) if path.suffix == ".json" else configuration.read_yaml(path)
    return neox.is_neox(raw) if path.suffix != ".json" else neox.is_neox_json(raw)


def words(config: str, more: Iterable[str]) -> tuple[list[str], list[str]]:
    """What stands on a command line behind its first configuration, as (all configurations, overrides): what
    has no `=` and is a file, by its name or in fact, is one."""
    files: list[str] = [config]
    overrides: list[str] = []
    for word in more:
        is_file = "=" not in word and (
            Path(word).suffix in (".yml", ".yaml", ".json") or neox.located(word).is_file()
        )
        (files if is_file else overrides).append(word)
    return files, overrides


def of_folder(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of the run directory `path`, or, of a Hugging Face directory, one with the model
    there. Raises `NeojaxError`."""
    if (path / CONFIG).is_file():
        return configuration.of_run(path, overrides)
    if is_adapter_dir(path):
        return of_folder(base_of(path), overrides)
    if hf_config.is_hf_dir(path):
        model = configuration.to_dict(hf_config.read_config(path))
        return configuration.from_dict({"model": model}, overrides, source=str(path))
    refuse_checkpoint(path)
    raise NeojaxError(
        f"{path} is neither a run directory ({CONFIG}) nor a Hugging Face one ({hf_config.CONFIG})"
    )


def model_of(path: str) -> dict[str, Any]:
    """The `model` section of the Hugging Face or run directory (or RUN/checkpoints/STEP) at `path`."""
    folder = place(path)
    if is_adapter_dir(folder):
        folder = base_of(folder)
    if hf_config.is_hf_dir(folder):
        return configuration.to_dict(hf_config.read_config(folder))
    for run in (folder, folder.parent.parent):
        if (run / "config.yml").is_file():
            return configuration.to_dict(configuration.of_run(run).model)
    refuse_checkpoint(folder)
    cause = "is neither a Hugging Face directory (config.json) nor a run (config.yml)"
    raise NeojaxError(f"train.init_from: {path} {cause if folder.exists() else 'does not exist'}")
