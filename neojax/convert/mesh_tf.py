"""gpt-neo's own checkpoints: a TensorFlow bundle with Mesh-TensorFlow's variable names, and the JSON config
of its run.

The variables are those of `gpt2/`, each with `adam_m` and `adam_v` where the optimizer was Adam, with factors
of its second moment where it was Adafactor, and `global_step`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from neojax import config as configuration
from neojax.config import Config
from neojax.convert import bundle, gpt_neo
from neojax.convert.bundle import Bundle
from neojax.convert.hf_config import read_json
from neojax.convert.hf_tensors import Place
from neojax.convert.hf_tokenizer import read_tokenizer
from neojax.convert.mesh_tf_adafactor import MOMENTUM, SecondMoments
from neojax.convert.mesh_tf_names import check_readable, places
from neojax.convert.place import Index, place
from neojax.convert.tensor_files import TensorFiles
from neojax.data.tokenizer import n_ids, usual_end
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.pieces import Piece, pieces

STEP = "global_step"
MOMENTS = {"mu": "adam_m", "nu": "adam_v"}  # names in optax's state -> suffixes of the variables
# What is no weight: the optimizers' slots, and TensorFlow 2's object graph.
_OTHER = re.compile(r".*/adam_[mv]|.*_slot_(v|vr|vc|m)|_CHECKPOINTABLE_OBJECT_GRAPH")


@dataclass(frozen=True)
class MeshTF:
    """A loaded checkpoint: the model, its run's config, the steps taken, and the moments of its optimizer, {}
    where it has none: Adam's, {"mu", "nu"} of {parameter: array}, or Adafactor's, {"squares"} of the same,
    and {"ema"} with momentum."""

    model: Transformer
    config: Config
    step: int
    moments: dict[str, dict[str, jax.Array]]

    @property
    def keeps_moments(self) -> bool:
        """Whether the moments are there and of the optimizer that `config` asks for."""
        return ("squares" if self.config.train.optimizer == "adafactor" else "mu") in self.moments


def load(
    path: str | Path,
    config: str | Path | None = None,
    layout: Layout | None = None,
    compute: Compute | None = None,
) -> MeshTF:
    """The checkpoint at `path`: gpt-neo's MODEL_PATH (its newest), or the `model.ckpt-STEP` in it.

    config: the JSON of the run, by default the one in the folder; layout: default one device; compute: how it
    computes.
    Weights are float32 in the stored layout, without the padding of the vocabulary that Mesh-TensorFlow
    added. Raises `NeojaxError`, naming the file, for whatever is damaged or does not fit together.
    """
    path = Path(path)
    prefix = bundle.find(path)
    if prefix is None:
        raise NeojaxError(f"{path} has no TensorFlow checkpoint; expected model.ckpt-STEP.index and its data")
    source = Path(config) if config else _find_config(prefix.parent)
    files = Bundle(prefix)
    settings = _read_config(source, files)
    check_readable(settings.model, source)
    model = Transformer(settings.model, layout, compute)
    model.stored()  # a layout that does not fit, before files are read
    tokenizer = read_tokenizer(prefix.parent)
    if tokenizer is not None and n_ids(tokenizer) > settings.model.n_vocab:
        raise NeojaxError(
            f"{prefix.parent}: the tokenizer has {n_ids(tokenizer)} ids but {source} has "
            f"{settings.model.n_vocab}"
        )
    where = {p.piece: p for p in places(settings.model, pieces(model), files.shapes)}
    names = [p.tensor for p in where.values()]
    _match(where.values(), files, source)
    adam = [f"{name}/{slot}" for name in names for slot in MOMENTS.values()]
    adam = adam if all(slot in files.shapes for slot in adam) else []
    squares = SecondMoments(files)
    adafactor = settings.train.optimizer == "adafactor"
    momentum = adafactor and settings.train.adafactor_momentum > 0
    factors = squares.slots(names, momentum)
    files.check([*names, *adam, *factors, *({STEP} & files.shapes.keys())])

    def values(files: TensorFiles, suffix: str = "") -> Transformer:
        def read(piece: Piece, index: Index) -> np.ndarray:
            return where[piece].read(files, where[piece].tensor + suffix, index)

        return place(model, read)

    step = int(files.read(STEP, ())) if STEP in files.shapes else 0
    moments = {ours: values(files, f"/{theirs}").params() for ours, theirs in MOMENTS.items()} if adam else {}
    if factors and adafactor:
        moments["squares"] = values(squares).params()
    if factors and momentum:  # gpt-neo's was of updates times the learning rate, which was constant
        rate = settings.train.learning_rate or 1.0
        ema = values(files, MOMENTUM).params()
        moments["ema"] = jax.jit(lambda ema: jax.tree.map(lambda m: m / rate, ema))(ema)
    loaded = values(files).accompanied(tokenizer, None if tokenizer is None else usual_end(tokenizer))
    return MeshTF(loaded, settings, step, moments)


def _read_config(source: Path, files: Bundle) -> Config:
    """A gpt-neo config, or one of our own (YAML)."""
    if source.suffix != ".json":
        return configuration.load(source)
    raw = gpt_neo.load(source)
    if "rotary_emb" in read_json(source) and "gpt2/wpe" not in files.shapes:
        raw["model"]["positions"] = {
            "kind": "rotary"
        }  # gpt-neo took any value for on, and saved no table then
    return configuration.from_dict(raw, source=str(source))


def _find_config(folder: Path) -> Path:
    """The gpt-neo config in the folder of a checkpoint. Raises `NeojaxError` unless there is just one."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            raw = read_json(file)
        except NeojaxError:
            continue
        if "n_embd" in raw and "n_head" in raw:
            found.append(file)
    if len(found) != 1:
        have = f"there are {', '.join(f.name for f in found)}" if found else "there is none"
        raise NeojaxError(
            f"{folder}: which gpt-neo config (JSON) is this model's? {have}; name it with --config"
        )
    return found[0]


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
                    f"{files.prefix}.index: {name} has shape {list(have)}, but by {source} it has "
                    f"{list(shape)}"
                )
    extra = [n for n in files.shapes if n not in wanted and n != STEP and not _OTHER.fullmatch(n)]
    if extra:
        raise NeojaxError(
            f"{files.prefix}.index holds {extra[0]}{_more(extra)}, which the model of {source} has not"
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
