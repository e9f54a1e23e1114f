"""Where a run begins: at its newest whole checkpoint, or at step 0 where nothing would be lost by it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from neojax import config as configuration
from neojax.config import Config, TrainConfig
from neojax.errors import NeojaxError
from neojax.layout.hosts import agreed, on_first
from neojax.loading import load_params
from neojax.models import Transformer
from neojax.runs import base
from neojax.runs import run_dir as runs
from neojax.runs.bucket_shelf import shelf_of
from neojax.runs.checkpoint import Checkpoints, DamagedError
from neojax.runs.shelf import NEWEST
from neojax.storage.remote import place
from neojax.training.adafactor import as_stored
from neojax.training.metrics import METRICS, read_metrics
from neojax.training.optimizer import Optimizer
from neojax.training.state import State, init_state

Note = Callable[[str], None]


def may_begin(config: Config, note: Note) -> None:
    """Makes sure that a run without a checkpoint never had one, before anything of it is touched.

    What a run that ended before its first checkpoint logged is kept beside the new metrics, as is everything
    with `train.restart`. Raises `NeojaxError` where there were checkpoints. Every process calls it.
    """
    folder = place(config.train.run_dir)
    on_first(lambda: _may_begin(folder, config.train.restart, note))


def _may_begin(folder: Path, restart: bool, note: Note) -> None:
    try:
        if shelf_of(folder).steps():
            return
        has_folder = (folder / "checkpoints").is_dir()
        logged = (
            max((row["step"] for row in read_metrics(folder)), default=0)
            if (folder / METRICS).exists()
            else 0
        )
        has_newest = (folder / NEWEST).exists()
        found = None
        try:
            if (step := newest_saved(folder)) is not None:
                found = f"saved a checkpoint at step {step}"
        except ValueError:
            found = f"a damaged {NEWEST}, which says the step of its last checkpoint"
        if not has_newest and logged and (not has_folder or logged >= _checkpoint_every(folder)):
            found = f"metrics up to step {logged}"  # of an earlier version, which did not write NEWEST
        if found and not restart:
            raise NeojaxError(
                f"{folder} has {found}, but its checkpoints/ is {'empty' if has_folder else 'gone'}: bring "
                "the checkpoints back, or begin anew with another train.run_dir, or here with "
                "train.restart=true, which keeps the old metrics"
            )
        kept = _keep_aside(folder) if found or logged else None
        runs.write_text(folder / NEWEST, json.dumps({"step": None}) + "\n")
    except OSError as e:
        raise NeojaxError(f"{folder}: {e.strerror or e}: {e.filename or folder}") from None
    if found or logged:
        why = "train.restart" if found else f"it ended at step {logged} or later, before its first checkpoint"
        note(
            f"{folder} begins anew from step 0 ({why}){f'; the metrics of before are {kept}' if kept else ''}"
        )
    elif not has_newest and (folder / runs.CONFIG).exists():
        note(f"{folder} has a {runs.CONFIG} but neither checkpoints nor metrics: it begins from step 0")


def newest_saved(folder: Path) -> int | None:
    """The step of the last checkpoint that was saved in a run directory, whether or not it is there still;
    None where none was. Raises `ValueError` where what says so is damaged."""
    try:
        content = json.loads((folder / NEWEST).read_bytes())
    except FileNotFoundError:
        return None
    except RecursionError as e:
        raise ValueError from e
    step = content.get("step", "") if isinstance(content, dict) else ""
    if step is not None and (type(step) is not int or step < 0):
        raise ValueError
    return step


def _newest_or_none(folder: Path) -> int | None:
    try:
        return newest_saved(folder)
    except ValueError:  # the checkpoints that are there say more
        return None


def _checkpoint_every(folder: Path) -> int:
    try:
        return configuration.of_run(folder).train.checkpoint_every
    except NeojaxError:  # no config.yml, or another version's
        return 1


def _keep_aside(folder: Path) -> str | None:
    """Renames the metrics, and TensorBoard's folder, to the first number that is free."""
    number = next(n for n in range(1, 10**6) if not any(folder.glob(f"*.{n}*")))
    kept = None
    for name, aside in ((METRICS, f"metrics.{number}.jsonl"), ("tensorboard", f"tensorboard.{number}")):
        if (folder / name).exists():
            (folder / name).rename(folder / aside)
            kept = kept or aside
    return kept


def go_on(
    checkpoints: Checkpoints,
    config: Config,
    meta: dict[str, Any],
    like: State,
    note: Note,
    has_base: bool = False,
) -> tuple[int, State | None]:
    """The step that the run has come to and its state, laid out as `like`; (0, None) where there is no
    checkpoint, and no state where all steps are done and evaluated.

    `meta` is what this run is going to save; a tokenizer that is not beside the data any more is left in it
    as it was. `has_base`: whether the frozen parameters lie apart (`runs.base`). With `train.on_damage:
    previous` damaged checkpoints are set aside. Raises `NeojaxError` where the checkpoint does not fit
    `config`, or is damaged.
    """
    folder = place(config.train.run_dir)
    wanted = agreed(lambda: _newest_or_none(folder))
    adapt = partial(as_stored, dims=checkpoints.dims, n_vocab=checkpoints.n_vocab or None)
    while (step := checkpoints.latest()) is not None:
        try:
            saved = checkpoints.restore_meta(step)
            lines = runs.check_data(saved, meta, folder, step)
            lines += runs.check_resume(runs.config_of(saved, source=str(folder)), config, folder, step)
            done = step >= config.train.steps and not saved.get("unevaluated")
            restored = None if done else checkpoints.restore(step, like.saved(has_base), adapt)
        except DamagedError as e:
            if config.train.on_damage == "stop" or len(checkpoints.steps()) == 1:
                hint = "" if len(checkpoints.steps()) == 1 else "; train.on_damage=previous does so by itself"
                raise NeojaxError(f"{e}{hint}") from None
            aside = checkpoints.set_aside(step)
            note(
                f"WARNING: checkpoint {step} is damaged ({e.fault}); it lies in {aside} now, and the run "
                "goes back"
            )
            wanted = None
            continue
        if wanted is not None and wanted > step:
            note(f"the last checkpoint saved, of step {wanted}, is gone: going on from step {step}")
        for line in lines:
            note(line)
        if meta["tokenizer"] is None:
            meta |= {key: saved.get(key) for key in ("tokenizer", "eos_token_id")}
        if restored is None:
            return step, None
        kept = None
        if has_base:
            kept = base.read(folder, like.frozen, checkpoints.dims, checkpoints.n_vocab)
        return step, like.restored(restored, kept)
    return 0, None


def first_state(model: Transformer, optimizer: Optimizer, train: TrainConfig, note: Note) -> State:
    """The state before the first step, from the weights that the run is to begin with. Raises
    `NeojaxError`."""
    if not train.init_from:
        if model.adapters is not None:
            raise NeojaxError(
                f"train.lora.rank={train.lora.rank} adapts weights that are there: name them with "
                "train.init_from"
            )
        return init_state(model.init(train.seed), optimizer)
    params = load_params(train.init_from, model, train.seed)
    bound = model.bind(params) if model.adapters is None else model.adapted(params, train.seed)
    note(f"starting from the weights of {train.init_from}")
    return init_state(bound, optimizer)
