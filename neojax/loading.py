"""Opening a trained model for use: a run directory, one of its checkpoints, or a Hugging Face directory."""

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from neojax import config as configuration
from neojax.arguments import wrong
from neojax.config import Config, MeshConfig
from neojax.convert import configs, hf, hf_config, peft
from neojax.convert.neox_checkpoint import refuse_checkpoint
from neojax.convert.peft_files import CONFIG as ADAPTER
from neojax.convert.peft_files import base_of, is_adapter_dir
from neojax.convert.place import Fresh, Narrow
from neojax.data import tokenizer as tokenizers
from neojax.data.special_tokens import SpecialTokens
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout, layout_on, make_layout, single_device
from neojax.models import Transformer
from neojax.models.compute import COMPUTE_TYPES, Compute, compute_type
from neojax.models.families import family
from neojax.models.inference import (
    check_weights,
    converted,
    for_inference,
    inference_compute,
    inference_layout,
)
from neojax.models.matrices import narrow
from neojax.models.merging import merged
from neojax.models.pieces import by_param
from neojax.runs import base
from neojax.runs import run_dir as runs
from neojax.runs.checkpoint import Checkpoints
from neojax.storage.remote import is_remote, place

BEST = "best"
"""The name, beside those of steps, of the checkpoint of the best evaluation."""


def load(
    path: str | Path,
    *,
    mesh: MeshConfig | None = None,
    dtype: str = "auto",
    weights: str = "auto",
    adapter: str | Path | None = None,
) -> Transformer:
    """The trained model at `path`, with its weights placed on a mesh.

    mesh: default the mesh that `jax.set_mesh` has put in force, split as the run it comes from was, or one
    device. path: a run directory (its newest checkpoint), RUN/checkpoints/STEP, a Hugging Face directory, or
    a folder of PEFT's that names its base. adapter: such a folder, to be added to the model at `path`, whose
    matrices low-rank additions stay beside.
    dtype: compute type, float32 or bfloat16; auto is bfloat16 on TPU and GPU. weights: what the matrices are
    kept in, float32, bfloat16, int8, or auto, the compute type: fewer bytes to hold, at some loss; slower on
    CPU. They are held once, in the form that scoring and generation use (`neojax.models.inference`). The
    model's `tokenizer` (a `tokenizers.Tokenizer` or None) and `eos_token_id` (int or None) come with it.
    Raises `NeojaxError`.
    """
    if not isinstance(path, str | os.PathLike):
        raise wrong("path", path, "the folder of a run or of a Hugging Face model")
    if adapter is not None and not isinstance(adapter, str | os.PathLike):
        raise wrong("adapter", adapter, "a folder of PEFT's, with adapter_config.json")
    if not isinstance(dtype, str) or dtype not in ("auto", *COMPUTE_TYPES):
        raise wrong("dtype", dtype, "auto, float32 or bfloat16")
    check_weights(weights)
    layout = None if mesh is None else make_layout(checked(mesh))  # first, since it may choose JAX's devices
    try:
        path, adapter = with_adapter(path, adapter)
        run = None if hf.is_hf_dir(path) else open_run(path)
    except (OSError, ValueError) as e:  # a name that is too long, or none for a file
        raise NeojaxError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None
    layout = layout or usual_layout(MeshConfig(layout="") if run is None else run.config.mesh)
    compute = Compute(dtype=compute_type(dtype, layout))
    with layout.in_force():
        if adapter is not None:
            return for_inference(load_adapted(path, adapter, layout, compute), weights)
        if run is None:

            def kept(name: str, dims: tuple[str, ...], value: jax.Array) -> Any:
                return narrow(value, dims, compute.dtype, weights)

            return hf.load(path, inference_layout(layout), inference_compute(compute), kept)
        model, params = restore(run, layout, compute)
        return accompanied(converted(model, params, weights), run)


def load_trained(
    path: str | Path, layout: Layout | None = None, compute: Compute | None = None
) -> Transformer:
    """The model at `path`, as `load` takes it, in the form in which it is trained: float32, in the stored
    layout of `layout` (default: one device), with its low-rank additions. Raises `NeojaxError`."""
    path, adapter = with_adapter(path)
    if adapter is not None:
        return load_adapted(path, adapter, layout, compute)
    if hf.is_hf_dir(path):
        return hf.load(path, layout, compute)
    run = open_run(path)
    model, params = restore(run, layout or single_device(), compute or Compute())
    return accompanied(model.bind(params), run)


def with_adapter(path: str | Path, adapter: str | Path | None = None) -> tuple[Path, Path | None]:
    """The folder of a model, and that of an adapter for it: of one that is at `path` itself, the base that it
    names. Raises `NeojaxError`."""
    folder = place(path)
    if adapter is None:
        return (base_of(folder), folder) if is_adapter_dir(folder) else (folder, None)
    adapter = Path(adapter)
    if not (adapter / ADAPTER).is_file():
        cause = f"has no {ADAPTER}" if adapter.exists() else "does not exist"
        raise NeojaxError(f"adapter {adapter} {cause}; expected a folder of PEFT's")
    return folder, adapter


def load_adapted(
    path: Path, adapter: Path, layout: Layout | None = None, compute: Compute | None = None
) -> Transformer:
    """The model at `path` with the low-rank additions of `adapter`, in the form in which it is trained;
    additions of its own become part of its matrices, and a head that only the adapter has comes with it.
    Raises `NeojaxError`."""
    own = peft.opened(adapter)
    if not hf.is_hf_dir(path) or (head := peft.head_for(own, hf_config.read_config(path))) is None:
        return peft.load(own, merged(load_trained(path, layout, compute)), path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        base = hf.load(path, layout, compute, head=head)
    if not peft.heads_are_known(own, base, path):  # else what is told to begin at random does not
        for warning in told:
            warnings.warn(warning.message, stacklevel=3)
    return peft.load(own, base, path)


def config_at(path: str | Path, adapter: str | Path | None = None) -> Config:
    """The configuration of the run at `path`, as `load` takes it, or of a Hugging Face directory one with the
    model there, whose head is the adapter's where only that has it. Raises `NeojaxError`."""
    folder, adapter = with_adapter(path, adapter)
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    config = configs.of_folder(run)
    if adapter is None or not hf.is_hf_dir(folder):
        return config
    head = peft.head_for(peft.opened(adapter), config.model)
    return config if head is None else replace(config, model=replace(config.model, head=head))


def checked(mesh: MeshConfig) -> MeshConfig:
    """`mesh`, if it is one and its values are of their types. Raises `NeojaxError`."""
    if not isinstance(mesh, MeshConfig):
        raise wrong("mesh", mesh, 'a neojax.config.MeshConfig, such as MeshConfig(shape="data:1", layout="")')
    return configuration.from_dict({"mesh": configuration.to_dict(mesh)}, source="mesh").mesh


def usual_layout(usual: MeshConfig) -> Layout:
    """The layout of `usual` on the mesh in force; without one, a single device."""
    current = jax.sharding.get_mesh()
    return single_device() if current.empty else layout_on(current, usual)


def load_params(path: str | Path, model: Transformer, seed: int = 0) -> dict[str, Any]:
    """The weights at `path`, as `load` takes it, for `model` in its stored layout; for one with low-rank
    additions its other parameters, of which a Hugging Face directory gives each in the type that it is kept
    in as soon as it is read. Heads that are not there begin at random, as `seed` has it; a warning says so,
    and which heads there have no use. Raises `NeojaxError` where its other parameters are not those of
    `model`."""
    kept: Narrow = (lambda name, dims, value: value) if model.adapters is None else model.adapters.narrowed
    model = model.plain()
    folder = place(path)
    names = family(model.config.family).hugging_face
    heads = set() if names is None else set(names.heads)
    if "lm" not in model.config.head.kinds:
        heads |= {"lm_head", "lm_head_bias"}  # of one that predicts tokens
    ours = model.stored()
    if heads and hf.is_hf_dir(folder):
        loaded = hf.load(folder, model.layout, model.compute, kept, head=model.config.head, seed=seed)
        theirs = dict(loaded.params())
    elif hf.is_hf_dir(folder):
        theirs = dict(hf.load(folder, model.layout, model.compute, kept).params())
    else:
        theirs = merged(load_trained(path, model.layout, model.compute)).params()
        theirs = _with_heads(theirs, model, heads, seed, path) if heads else theirs
    for name in {**ours, **theirs}:
        mine, its = (tuple(p[name].shape) if name in p else "none" for p in (ours, theirs))
        if mine != its:
            raise NeojaxError(
                f"train.init_from={path}: parameter {name} is {its} there but {mine} in this configuration; "
                "leave the keys of model out to take them from there"
            )
    return theirs


def _with_heads(
    theirs: dict[str, jax.Array], model: Transformer, heads: set[str], seed: int, path: str | Path
) -> dict[str, jax.Array]:
    """The parameters of an encoder with the heads of `model`: of those that lack, initial values."""
    ours, fresh = by_param(model), Fresh(model, seed)
    missing = [name for name in ours if name in heads and name not in theirs]
    unused = [name for name in theirs if name in heads and name not in ours]
    parts = [f"has no {', '.join(missing)}, which begin at random"] if missing else []
    parts += [f"holds {', '.join(unused)}, for which this model has no head"] if unused else []
    if parts:
        warnings.warn(f"{path} {'; it '.join(parts)}", stacklevel=3)
    kept = {name: value for name, value in theirs.items() if name not in unused}
    for name in missing:
        (piece,) = ours[name]
        spec = model.stored()[name]
        value = np.zeros(spec.shape, np.float32)
        inside = tuple(slice(0, size) for size in piece.shape)
        value[inside] = fresh.read(piece, inside)
        kept[name] = jax.device_put(value, spec.sharding)
    return kept


class Saved(NamedTuple):
    """A checkpoint of the run directory `run`, and what it holds beside arrays."""

    run: Path
    step: int
    config: Config
    meta: Mapping[str, Any]


def open_run(path: Path) -> Saved:
    """The checkpoint that `path` means. Raises `NeojaxError`."""
    run, step = find_run(path)
    with Checkpoints(run) as checkpoints:
        chosen = checkpoints.latest() if step is None else step
        if chosen is None or chosen not in checkpoints.steps():
            have = ", ".join(map(str, checkpoints.steps())) or "none yet"
            raise NeojaxError(
                f"{run} has no checkpoint{'' if step is None else f' of step {step}'}; it has: {have}"
            )
        meta = checkpoints.restore_meta(chosen)
    return Saved(run, chosen, runs.config_of(meta, source=str(run)), meta)


def restore(saved: Saved, layout: Layout, compute: Compute) -> tuple[Transformer, dict[str, jax.Array]]:
    """The (abstract) model of a checkpoint and its parameters, as they were trained, in the stored layout of
    `layout`: float32, but for the base of low-rank additions where it is kept narrower."""
    model = Transformer(saved.config.model, layout, compute, saved.config.train.lora)
    wanted, dims, n_vocab = model.stored(), model.dims(), saved.config.model.n_vocab
    apart = frozenset() if model.adapters is None else model.adapters.frozen
    kept = {name: wanted.pop(name) for name in apart}
    with Checkpoints(saved.run, dims=dims, n_vocab=n_vocab) as checkpoints:
        params = checkpoints.restore_params(saved.step, wanted)
    return model, params if not kept else {**params, **base.read(saved.run, kept, dims, n_vocab)}


def accompanied(model: Transformer, saved: Saved) -> Transformer:
    """`model` with the tokenizer and the special tokens that its checkpoint holds. One that was trained on
    masked tokens has a mask, and begins a row as in training."""
    tokenizer = None
    if saved.meta["tokenizer"] is not None:
        source = f"the tokenizer of {saved.run}, checkpoint {saved.step},"
        tokenizer = tokenizers.parse(saved.meta["tokenizer"], source)
    end = None if tokenizer is None else tokenizers.usual_end(tokenizer)
    train = saved.config.train
    first = () if train.mlm_cls_token_id is None else (train.mlm_cls_token_id,)
    mask = train.mlm_mask_id
    if mask is None and not model.config.causal and tokenizer is not None:
        mask = SpecialTokens.of(tokenizer).mask
    # Without a word on its end, the checkpoint was written before it was kept.
    return model.accompanied(tokenizer, saved.meta.get("eos_token_id", end), first, mask)


def tokenizer_at(path: str | Path) -> tuple[Any, int | None]:
    """The tokenizer of the model at `path`, as `load` takes it, and the id that ends a document; None where
    there is none. Raises `NeojaxError`."""
    path = place(path)
    if hf.is_hf_dir(path):
        return hf.read_tokenizer(path), hf.read_eos_token_id(path)
    saved = open_run(path)
    text = saved.meta["tokenizer"]
    return None if text is None else tokenizers.parse(text, f"the tokenizer of {path}"), saved.meta.get(
        "eos_token_id"
    )


def best_step(run: Path) -> int:
    """The step of the best checkpoint of a run, as its newest one says. Raises `NeojaxError` where it says of
    none."""
    with Checkpoints(run) as checkpoints:
        newest = checkpoints.latest()
        best = None if newest is None else checkpoints.restore_meta(newest).get("best")
    if not best or best["step"] is None:
        raise NeojaxError(
            f"{run} has no best checkpoint: it was trained without train.best_metric, or not evaluated yet"
        )
    return best["step"]


def find_run(path: Path) -> tuple[Path, int | None]:
    """Splits RUN, RUN/checkpoints/STEP or RUN/checkpoints/best into the run directory and the step (None for
    the newest)."""
    if path.parent.name == "checkpoints" and path.name == BEST and runs.is_run_dir(path.parent.parent):
        return path.parent.parent, best_step(path.parent.parent)
    if path.parent.name == "checkpoints" and re.fullmatch(r"[0-9]+", path.name):
        return path.parent.parent, int(path.name)
    if runs.is_run_dir(path):
        return path, None
    if path.name == "checkpoints" and runs.is_run_dir(path.parent):
        return path.parent, None
    refuse_checkpoint(path)
    cause = "is neither a run directory (config.yml and checkpoints/) nor a Hugging Face one (config.json)"
    if not path.exists():
        cause = "does not exist"
    elif (path / runs.CONFIG).is_file():
        cause = "is a run directory without a checkpoint; train it first"
    elif is_remote(path) and (path / hf_config.CONFIG).is_file():
        cause = "is a Hugging Face directory in a bucket; copy it to this machine first"
    raise NeojaxError(f"{path} {cause}")
