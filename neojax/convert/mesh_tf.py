"""gpt-neo's own checkpoints: a TensorFlow bundle with Mesh-TensorFlow's variable names, and the JSON config of its run.

The variables are those of `gpt2/`, each with `adam_m` and `adam_v` where the optimizer was Adam, and `global_step`.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neojax import config as configuration
from neojax.config import Config
from neojax.convert import bundle
from neojax.convert.bundle import Bundle
from neojax.convert.hf_tensors import Place
from neojax.convert.hf_tokenizer import read_tokenizer
from neojax.convert.place import Index, Piece, pieces, place
from neojax.data.tokenizer import n_ids
from neojax.errors import NeojaxError
from neojax.mesh import Layout
from neojax.models import Transformer
from neojax.training.optimizer import make_optimizer

STEP = "global_step"
MOMENTS = {"mu": "adam_m", "nu": "adam_v"}  # names in optax's state -> suffixes of the variables
# What is neither a weight nor used: Adafactor's moments, whose factors lie differently, and TensorFlow 2's object graph.
_OTHER = re.compile(r".*/adam_[mv]|.*_slot_(v|vr|vc|m)|_CHECKPOINTABLE_OBJECT_GRAPH")

# role of a parameter -> its variable, and the dimensions of its axes
VARIABLES = {
    "wte": ("wte", "vocab embd"),
    "wpe": ("wpe", "positions embd"),
    "norm_f.scale": ("ln_f/g", "embd"),
    "norm_f.bias": ("ln_f/b", "embd"),
    "norm_1.scale": ("norm_1/g", "embd"),
    "norm_1.bias": ("norm_1/b", "embd"),
    "norm_2.scale": ("norm_2/g", "embd"),
    "norm_2.bias": ("norm_2/b", "embd"),
    "attn.query": ("attn/q", "embd heads*head_dim"),
    "attn.key": ("attn/k", "embd heads*head_dim"),
    "attn.value": ("attn/v", "embd heads*head_dim"),
    "attn.out": ("attn/o", "heads*head_dim embd"),
    "attn.out_bias": ("attn/compute_output_bias/o_b", "embd"),
    "mlp.up": ("mlp/conv1d_main/c_fc/kernel", "embd mlp"),
    "mlp.up_bias": ("mlp/conv1d_main/c_fc/bias", "mlp"),
    "mlp.down": ("mlp/conv1d_main/c_proj/kernel", "mlp embd"),
    "mlp.down_bias": ("mlp/conv1d_main/c_proj/bias", "embd"),
}


@dataclass(frozen=True)
class MeshTF:
    """A loaded checkpoint: the model, its run's config, the steps taken, and Adam's moments, {"mu", "nu"} of
    {parameter: array}, or {} where it has none."""

    model: Transformer
    config: Config
    step: int
    moments: dict[str, dict[str, jax.Array]]

    @property
    def keeps_moments(self) -> bool:
        """Whether the moments are there and of the optimizer that `config` asks for."""
        return bool(self.moments) and self.config.train.optimizer == "adamw"

    def opt_state(self) -> Any:
        """The state with which the optimizer of `config` goes on at `step`; without moments they begin at zero."""
        params = self.model.params()
        state = jax.jit(make_optimizer(self.config.train, self.model.dims()).init)(params)
        count = jnp.int32(self.step)
        if self.keeps_moments:
            scale: Any = state[0]
            kept = {slot: _typed_as(getattr(scale, slot), own) for slot, own in self.moments.items()}
            return optax.tree.set(state, count=count, **kept)
        # The correction of moments that begin at zero begins anew with them: only the schedule goes on.
        return optax.tree.set(state, lambda path, _: _is_of_schedule(path[-1]), count=count)


def _typed_as(like: dict[str, jax.Array], moments: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: moment.astype(like[name].dtype) for name, moment in moments.items()}


def _is_of_schedule(key: Any) -> bool:
    return getattr(key, "tuple_name", "") == optax.ScaleByScheduleState.__name__


def load(
    path: str | Path,
    config: str | Path | None = None,
    layout: Layout | None = None,
    *,
    dtype: Any = jnp.float32,
) -> MeshTF:
    """The checkpoint at `path`: gpt-neo's MODEL_PATH (its newest), or the `model.ckpt-STEP` in it.

    config: the JSON of the run, by default the one in the folder; layout: default one device; dtype: compute type.
    Weights are float32 in the stored layout, without the padding of the vocabulary that Mesh-TensorFlow added.
    Raises `NeojaxError`, naming the file, for whatever is damaged or does not fit together.
    """
    path = Path(path)
    prefix = bundle.find(path)
    if prefix is None:
        raise NeojaxError(f"{path} has no TensorFlow checkpoint; expected model.ckpt-STEP.index and its data")
    source = Path(config) if config else _find_config(prefix.parent)
    settings = _read_config(source)
    if "none" in settings.model.attention_layers:
        raise NeojaxError(
            f"{source}: attention_types has layers of type none, at which gpt-neo doubled its activations; weights "
            "trained so mean something else here and are not converted"
        )
    model = Transformer(settings.model, layout, dtype=dtype)
    model.stored()  # a layout that does not fit, before files are read
    tokenizer = read_tokenizer(prefix.parent)
    if tokenizer is not None and n_ids(tokenizer) > settings.model.n_vocab:
        raise NeojaxError(
            f"{prefix.parent}: the tokenizer has {n_ids(tokenizer)} ids but {source} has {settings.model.n_vocab}"
        )
    files = Bundle(prefix)
    where = {p.piece: p for p in _places(pieces(model), source)}
    names = [p.tensor for p in where.values()]
    _match(where.values(), files, source)
    slots = {ours: [f"{n}/{theirs}" for n in names] for ours, theirs in MOMENTS.items()}
    has_moments = all(slot in files.shapes for group in slots.values() for slot in group)
    kept = names + [slot for group in slots.values() for slot in group] if has_moments else names
    files.check([*kept, STEP] if STEP in files.shapes else kept)

    def values(suffix: str = "") -> Transformer:
        def read(piece: Piece, index: Index) -> np.ndarray:
            return where[piece].read(files, where[piece].tensor + suffix, index)

        return place(model, read)

    step = int(files.read(STEP, ())) if STEP in files.shapes else 0
    moments = {ours: values(f"/{theirs}").params() for ours, theirs in MOMENTS.items()} if has_moments else {}
    model = values()
    model.tokenizer = tokenizer
    return MeshTF(model, settings, step, moments)


def _read_config(source: Path) -> Config:
    """A gpt-neo config, or one of our own (YAML)."""
    if source.suffix == ".json":
        from neojax.convert.gpt_neo import load as load_gpt_neo

        return configuration.from_dict(load_gpt_neo(source), source=str(source))
    return configuration.load(source)


def _find_config(folder: Path) -> Path:
    """The gpt-neo config in the folder of a checkpoint. Raises `NeojaxError` unless there is just one."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(raw, dict) and "n_embd" in raw and "n_head" in raw:
            found.append(file)
    if len(found) != 1:
        have = f"there are {', '.join(f.name for f in found)}" if found else "there is none"
        raise NeojaxError(
            f"{folder}: which gpt-neo config (JSON) is this model's? {have}; name it with --config"
        )
    return found[0]


def _places(found: Iterable[Piece], source: Path) -> list[Place]:
    places = []
    for piece in found:
        if piece.role not in VARIABLES:
            raise NeojaxError(
                f"{source}: neojax does not convert {piece.role} from Mesh-TensorFlow checkpoints"
            )
        name, axes = VARIABLES[piece.role]
        scope = "gpt2/" if piece.layer is None else f"gpt2/h{piece.layer}/"
        places.append(Place(piece, scope + name, tuple(tuple(axis.split("*")) for axis in axes.split())))
    return places


def _match(places: Iterable[Place], files: Bundle, source: Path) -> None:
    """Raises `NeojaxError` where a variable is missing, misshapen, or one that the model does not have."""
    wanted = {p.tensor: p.tensor_shape for p in places}
    missing = [name for name in wanted if name not in files.shapes]
    if missing:
        raise NeojaxError(
            f"{files.prefix}.index has no variable {missing[0]}{_more(missing)}, which {source} asks for; "
            "is it the config of this model?"
        )
    for where in places:
        for suffix in ("", *(f"/{slot}" for slot in MOMENTS.values())):
            name, shape = where.tensor + suffix, where.tensor_shape
            have = files.shapes.get(name, shape)
            padded = where.piece.role == "wte" and have[:1] > shape[:1] and have[1:] == shape[1:]
            if have != shape and not padded:
                raise NeojaxError(
                    f"{files.prefix}.index: {name} has shape {list(have)}, but by {source} it has {list(shape)}"
                )
    extra = [n for n in files.shapes if n not in wanted and n != STEP and not _OTHER.fullmatch(n)]
    if extra:
        raise NeojaxError(
            f"{files.prefix}.index holds {extra[0]}{_more(extra)}, which the model of {source} has not"
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
