"""Low-rank additions in and out of PEFT's files, for every family that transformers has."""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from neojax.config import HeadConfig, LoraConfig, ModelConfig
from neojax.convert import hf_tensors
from neojax.convert.hf import assembled
from neojax.convert.hf_config import names_of, read_json
from neojax.convert.hf_tensors import Place
from neojax.convert.peft_files import (
    CONFIG,
    PART,
    PREFIX,
    WEIGHTS,
    canonical,
    endings,
    is_matrix,
    module_of,
    open_weights,
    part,
    read_settings,
    settings_of,
)
from neojax.convert.tensor_files import TensorFiles, open_tensors
from neojax.errors import NeojaxError
from neojax.files import new_folder
from neojax.models import Transformer
from neojax.models.adapters import B
from neojax.models.families import HuggingFace
from neojax.models.merging import widened
from neojax.models.pieces import pieces
from neojax.models.selection import is_adapter, role_of

TASKS = {
    "lm": "CAUSAL_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}
"""Kind of a head -> PEFT's word for a task; for others it has none."""


class Adapter(NamedTuple):
    """PEFT's folder, and its tensors, whose files were looked through once."""

    folder: Path
    files: TensorFiles


def opened(path: str | Path) -> Adapter:
    """The adapter at `path`. Raises `NeojaxError` where its files cannot be read."""
    return Adapter(Path(path), open_weights(Path(path)))


def load(adapter: Adapter, base: Transformer, base_path: str | Path) -> Transformer:
    """The model `base`, which was loaded from `base_path`, with the additions of `adapter`, in the form in
    which it is trained.

    Layers without an addition, where others like them have one, get one of zeros; a rank or alpha of its own
    becomes the common one without changing what is added. Raises `NeojaxError`, which names the tensor, where
    the adapter is of another base.
    """
    (folder, files), names = adapter, names_of(base.config.family).of_heads(base.config.head.kinds)
    settings = read_settings(folder)
    places = hf_tensors.places(names, base.config, pieces(base))
    found = _found(folder, names, files, places, base_path)
    ranks = {module: files.shapes[keys["A"]][0] for module, keys in found.parts.items()}
    rank = max(ranks.values())
    lora = LoraConfig(
        rank=rank,
        alpha=settings.alpha,
        rs=settings.rs,
        dropout=settings.dropout,
        targets=_targets(
            base, {p.piece.param for p in places if module_of(p) in found.parts and is_matrix(p)}
        ),
        whole=tuple(sorted({p.piece.param for p in found.whole})),
    )
    model = Transformer(base.config, base.layout, base.compute, lora)
    specs, params = model.stored(), dict(base.params())
    added = {name: np.zeros(spec.shape, np.float32) for name, spec in specs.items() if is_adapter(name)}
    assert model.adapters is not None
    readers = dict(model.adapters.matrices)
    for place in places:
        if not is_matrix(place) or (keys := found.parts.get(module_of(place))) is None:
            continue
        own = ranks[module_of(place)]
        times = settings.scale(module_of(place), own) / model.adapters.scale
        at = tuple(index for _, index in place.piece.at)
        a, b = (_read(part(place, own, which), files, keys[which]) for which in "AB")
        added[readers[place.piece.param]][at][..., :own] = a
        added[place.piece.param + B][at][:own] = b * np.float32(times)
    for name in lora.whole:
        value = np.array(base.layout.fetch(params[name]))
        for place in (p for p in found.whole if p.piece.param == name):
            inside = tuple(slice(0, n) for n in place.piece.shape)
            at = tuple(index for _, index in place.piece.at)
            value[at][inside] = _read(place, files, found.keys[place.tensor])
        added[name] = value
    for name, value in added.items():
        read = value.__getitem__
        params[name] = jax.make_array_from_callback(value.shape, specs[name].sharding, read)
    return model.bind(params).accompanied(
        base.tokenizer, base.eos_token_id, base.first_tokens, base.mask_token_id
    )


def head_for(adapter: Adapter, config: ModelConfig) -> HeadConfig | None:
    """The head of the task of `adapter`, where a base of `config` has it not: with as many labels as the
    adapter has rows for, whose names PEFT does not keep."""
    (folder, files), names = adapter, names_of(config.family)
    task = read_json(folder / CONFIG).get("task_type")
    kind = next((kind for kind, word in TASKS.items() if word == task), "lm")
    if kind == "lm" or kind in config.head.kinds:
        return None
    tensors = {
        names.heads[param][0] for param in ("classifier.weight", "score.weight") if param in names.heads
    }
    rows = [files.shapes[key][0] for key in files.shapes if canonical(names, key) in tensors]
    if kind == "question_answering":
        return HeadConfig((kind,))
    return HeadConfig((kind,), tuple(f"LABEL_{i}" for i in range(rows[0]))) if rows else None


def heads_are_known(adapter: Adapter, base: Transformer, base_path: str | Path) -> bool:
    """Whether each tensor of the heads of `base` is in its files or in those of the adapter."""
    names = names_of(base.config.family).of_heads(base.config.head.kinds)
    needed = {names.heads[param][0] for param in base.params() if param in names.heads}
    files = (*adapter.files.shapes, *open_tensors(Path(base_path)).shapes)
    return needed <= {canonical(names, key) for key in files}


class _Found:
    """What an adapter holds: the tensors of additions by layer and part, the places of parameters that it has
    whole, and the names of their tensors in its file."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, str]] = defaultdict(dict)
        self.whole: list[Place] = []
        self.keys: dict[str, str] = {}


def _found(
    folder: Path, names: HuggingFace, files: TensorFiles, places: list[Place], base_path: str | Path
) -> _Found:
    """What of `files` belongs where. Raises `NeojaxError` for what does not fit the base."""
    tensors, found = hf_tensors.by_tensor(places), _Found()
    matrices = {module_of(p): p for p in places if is_matrix(p)}
    for key in files.shapes:
        name = canonical(names, key)
        match = PART.fullmatch(name)
        if match is None and "lora_" in name:
            raise NeojaxError(f"{files.file[key]} holds {key}: neojax has additions to linear layers alone")
        module = name if match is None else match[1]
        if name not in tensors and module not in matrices:
            cause = "is no matrix of a block" if f"{module}.weight" in tensors else "is not in the base"
            raise NeojaxError(
                f"{files.file[key]} holds {key}, but {module} {cause} {base_path}; is this the adapter of "
                "another model?"
            )
        if match is None:
            found.keys[name] = key
            found.whole += tensors[name]
            _check_shape(files, key, tensors[name][0].tensor_shape, base_path)
        else:
            found.parts[module][match[2]] = key
    if not found.parts:
        raise NeojaxError(f"{folder} holds no low-rank additions (lora_A, lora_B)")
    for module, keys in found.parts.items():
        for which in "AB":
            if which not in keys:
                raise NeojaxError(f"{folder}: {module} has no lora_{which}; is the file whole?")
        rank = files.shapes[keys["A"]][0]
        for which in "AB":
            wanted = part(matrices[module], rank, which).tensor_shape
            _check_shape(files, keys[which], wanted, base_path)
    return found


def _check_shape(files: TensorFiles, key: str, wanted: tuple[int, ...], base_path: str | Path) -> None:
    if files.shapes[key] != wanted:
        raise NeojaxError(
            f"{files.file[key]}: {key} has shape {list(files.shapes[key])}, but for the base {base_path} it "
            f"has {list(wanted)}; is this the adapter of another model?"
        )


def _targets(model: Transformer, names: set[str]) -> tuple[str, ...]:
    """The matrices `names` in few words: their names within a block, where all blocks have them."""
    by_role: dict[str, set[str]] = defaultdict(set)
    for name in model.dims():
        by_role[role_of(name)].add(name)
    whole = {role for role, own in by_role.items() if own <= names}
    return (*sorted(whole), *sorted(name for name in names if role_of(name) not in whole))


def _read(place: Place, files: TensorFiles, key: str) -> np.ndarray:
    return place.read(files, key, tuple(slice(0, n) for n in place.piece.shape))


def save(model: Transformer, path: str | Path, base: str = "", *, replace: bool = False) -> None:
    """Writes the additions of `model`, and the parameters that were trained whole beside them, as PEFT's
    folder `path`, which names `base`. The folder appears when it is complete.
    Raises `NeojaxError` for what PEFT cannot express, and where `path` is in use, unless it is to `replace`
    what is there."""
    assert model.adapters is not None
    lora, config = model.adapters.lora, model.config
    names = names_of(config.family).of_heads(config.head.kinds)
    places = hf_tensors.places(names, config, pieces(model))
    params, dims, readers = model.params(), model.dims(), dict(model.adapters.matrices)
    tensors: dict[str, np.ndarray] = {}
    targets, turned = set(), False
    for place in places:
        if place.piece.param not in readers:
            continue
        targets.add(module_of(place))
        turned |= place.axes[0] == part(place, lora.rank, "A").axes[1]
        for which, name in (("A", readers[place.piece.param]), ("B", place.piece.param + B)):
            inside = part(place, lora.rank, which)
            value = np.asarray(model.layout.fetch(params[name]))
            tensor = tensors.setdefault(PREFIX + inside.tensor, np.zeros(inside.tensor_shape, np.float32))
            inside.write(tensor, value[tuple(index for _, index in place.piece.at)])
    trained = {n for n in params if not is_adapter(n) and n not in model.adapters.frozen}
    by_tensor = hf_tensors.to_write(names, config, pieces(model))
    kept = {
        t.rpartition(".")[0] for t, own in by_tensor.items() if any(p.piece.param in trained for p in own)
    }
    if both := sorted(kept & targets):
        raise NeojaxError(
            f"train.lora.whole has parameters of {both[0]}, which has an addition: PEFT's files cannot hold "
            "both; merge them with --merge"
        )
    for name, own in by_tensor.items():
        if name.rpartition(".")[0] in kept:
            wide = {p.piece.param: widened(params[p.piece.param]) for p in own}
            tensors[PREFIX + name] = assembled(wide, dims, own)
    layers = {t.removesuffix(".weight") for t, own in by_tensor.items() if len(own[0].axes) == 2}
    settings = settings_of(
        base, lora.rank, lora.alpha, lora.dropout, lora.rs,
        TASKS.get(next(iter(config.head.kinds), "")),
        target_modules=endings(sorted(targets), layers),
        fan_in_fan_out=turned,
        modules_to_save=sorted(kept) or None,
    )  # fmt: skip
    with new_folder(path, replace) as folder:
        text = json.dumps(dict(sorted(settings.items())), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, folder / WEIGHTS[0], metadata={"format": "pt"})
        (folder / WEIGHTS[0]).chmod((folder / CONFIG).stat().st_mode)
