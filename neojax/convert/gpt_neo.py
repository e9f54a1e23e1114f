"""gpt-neo's JSON configs: what each key says in ours.

`read` gives the sections of our config, `convert_text` the same as commented YAML. The mapping, key by key:

- n_head n_embd n_vocab n_ctx n_layer, embed_dropout attn_dropout res_dropout, attention_types, rotary_emb (`false` is
  off; gpt-neo took any value for on) axial_pos_emb num_mem_kv mlp_glu scalenorm rezero macaron share_parameters
  scale_by_depth scale_by_in: model, under the same names; local_attention_radius: model.window_size;
  intermediate_size: model.n_inner; no_weight_tie: model.tie_word_embeddings, negated.
- activation_fn, else activation_function: model.activation_function; gelu is the tanh form, gelu_new. (gpt-neo read
  only the first spelling, so that its own configs, which use the second, always trained with gelu.)
- mesh_shape, layout: mesh.shape, mesh.layout. Layout rules that name no dimension or axis are left out, as gpt-neo did,
  but not silently.
- datasets, through dataset_configs/NAME.json: path to data.train with the dataset's weight, eval_path to
  data.validation where eval_steps is not 0, a tokenizer file to data.tokenizer. Sampling modes and stitching are not
  needed: documents are read as one stream.
- model_path: train.run_dir; train_batch_size: train.batch_size; train_steps: train.steps; precision: train.precision;
  recompute_grad: train.remat; tokens_per_mb_per_replica: train.microbatch, over all replicas; eval_steps:
  train.eval_batches, in our batches; seed.
- lr: train.learning_rate; lr_decay: train.schedule with a floor of 0.1 (none: constant); lr_decay_end:
  train.decay_steps; warmup_steps with warmup_scales_decay; opt_name: adam without bias correction, with
  beta1 beta2 epsilon weight_decay; anything else Adafactor, with train.adafactor_*: weight_decay, which gpt-neo gave it
  as the decay of its second moments, beta1, ada_epsilon1 and 2, and lr throughout, since it was given no schedule.
- gradient_clipping: train.clip_norm; z_loss (1e-4 if not given); entmax_loss: train.loss.
- mlm_training: model.causal, negated; mlm_*: train.mlm_*, used when mlm_training is true.
"""

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from neojax.config import ACTIVATIONS, SourceConfig
from neojax.convert.hf_config import read_json
from neojax.errors import NeojaxError, suggest

SAME = (
    *("n_head", "n_embd", "n_vocab", "n_ctx", "n_layer", "embed_dropout", "attn_dropout", "res_dropout"),
    *("attention_types", "rotary_emb", "axial_pos_emb", "num_mem_kv", "mlp_glu"),
    *("scalenorm", "rezero", "macaron", "share_parameters", "scale_by_depth", "scale_by_in"),
)
MLM = ("mask_id", "mask_prob", "same_token_prob", "random_token_prob", "mask_ignore_ids", "cls_token_id")
REQUIRED = ("n_head", "n_embd", "n_vocab", "n_layer", "attention_types")
# Keys that gpt-neo reads and that have nothing to set here: sampling has flags, and data needs no hints.
NOTHING_TO_SET = (
    *("iterations", "predict_steps", "predict_batch_size", "eval_batch_size", "eval_tasks"),
    *("model", "input_fn", "padding_id", "eos_id", "stop_at_token", "remove_partial_sequences"),
    *("moe_activation", "no_dataset", "causal", "mlm_training", "steps_per_checkpoint"),
)
CHECKPOINT_EVERY = 5000  # gpt-neo's --steps_per_checkpoint
FLOOR = 0.1
ADAM = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}
ADAFACTOR = {  # keys of ours -> gpt-neo's, and what stands for none
    "adafactor_decay": ("weight_decay", None),
    "adafactor_momentum": ("beta1", 0.0),
    "adafactor_epsilon1": ("ada_epsilon1", 1e-30),
    "adafactor_epsilon2": ("ada_epsilon2", 1e-3),
}
ABSENT = "dataset_configs/"  # the path of a dataset whose config is not there begins so


@dataclass
class Conversion:
    """The sections of a config: section -> key -> value, where each came from, and what was left out."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any, origin: str) -> None:
        section, key = name.split(".")
        self.sections.setdefault(section, {})[key] = value
        self.origin[name] = origin


def is_config(path: str | Path) -> bool:
    """Whether `path` is named as a gpt-neo config is."""
    return Path(path).suffix == ".json"


def load(path: str | Path) -> dict[str, dict[str, Any]]:
    """The sections of our config that the gpt-neo config `path` means, for `config.from_dict`.

    Keys that mean nothing here are listed once on stderr. Raises `NeojaxError`.
    """
    conversion = read(path)
    if conversion.ignored:
        print(f"{path}: ignored: {', '.join(conversion.ignored)}", file=sys.stderr)
    return conversion.sections


def read(path: str | Path) -> Conversion:
    """As `load`, with the origin of each value."""
    path = Path(path)
    raw = {key: value for key, value in read_json(path).items() if value is not None}
    if "model_type" in raw or "architectures" in raw:
        raise NeojaxError(
            f"{path} is a Hugging Face config, not a gpt-neo one; train from its directory with model.init_from"
        )
    if missing := [key for key in REQUIRED if key not in raw]:
        raise NeojaxError(f"{path}: no key {missing[0]}, which a gpt-neo config needs; is it one?")
    if raw.get("moe_layers"):
        raise NeojaxError(f"{path}: moe_layers: mixture-of-experts layers are not supported; remove the key")
    taken = Taken(path, raw)
    out = Conversion()
    _model(taken, out)
    _mesh(taken, out)
    _data(taken, out)
    _train(taken, out)
    for key in NOTHING_TO_SET:
        taken.drop(key)
    out.ignored += sorted(taken.left)
    return out


class Taken:
    """The keys of a JSON config, and those not asked for yet. Numbers may be written as texts."""

    def __init__(self, path: Path, raw: dict[str, Any]):
        self.path, self.raw, self.left = path, raw, set(raw)

    def drop(self, key: str) -> Any:
        self.left.discard(key)
        return self.raw.get(key)

    def number(self, key: str, default: Any) -> Any:
        value = self.drop(key)
        if value is None:
            return default
        try:
            return float(value)
        except (TypeError, ValueError):
            raise NeojaxError(f"{self.path}: {key}: expected a number, got {value!r}") from None

    def count(self, key: str, default: int) -> int:
        number = self.number(key, default)
        if not math.isfinite(number) or number != int(number):
            raise NeojaxError(f"{self.path}: {key}: expected a whole number, got {self.raw[key]!r}")
        return int(number)

    def flag(self, key: str) -> bool:
        value = self.drop(key)
        return value.strip().lower() == "true" if isinstance(value, str) else bool(value)

    def text(self, key: str, default: str = "") -> str:
        value = self.drop(key)
        if value is not None and not isinstance(value, str):
            raise NeojaxError(f"{self.path}: {key}: expected a text, got {value!r}")
        return default if value is None else value


def _model(taken: Taken, out: Conversion) -> None:
    flags = {"rotary_emb", "mlp_glu", "scalenorm", "rezero", "macaron", "share_parameters"}
    flags |= {"scale_by_depth", "scale_by_in"}
    for key in SAME:
        if key in taken.raw:
            value = taken.flag(key) if key in flags else taken.drop(key)
            is_count = isinstance(value, str) and value.isdecimal()
            out.put(f"model.{key}", int(value) if is_count else value, key)
    out.sections["model"].setdefault("n_ctx", 2048)
    for theirs, ours in {"local_attention_radius": "window_size", "intermediate_size": "n_inner"}.items():
        if taken.drop(theirs) is not None:
            out.put(f"model.{ours}", taken.raw[theirs], theirs)
    if taken.flag("no_weight_tie"):
        out.put("model.tie_word_embeddings", False, "no_weight_tie")
    if taken.raw.get("mlm_training") is not None and taken.flag("mlm_training"):
        out.put("model.causal", False, "mlm_training")
    second = taken.text("activation_function", "gelu")
    name = taken.text("activation_fn", second)
    origin = "activation_fn" if "activation_fn" in taken.raw else "activation_function"
    name = "gelu_new" if name == "gelu" else "silu" if name == "swish" else name
    if name not in ACTIVATIONS:
        raise NeojaxError(
            f"{taken.path}: {origin}: no activation is called {name!r}{suggest(name, ACTIVATIONS)}"
        )
    if origin in taken.raw:
        out.put("model.activation_function", name, origin)


def _mesh(taken: Taken, out: Conversion) -> None:
    """The mesh in Mesh-TensorFlow's grammar, less the rules that name nothing."""
    shape, layout = taken.text("mesh_shape"), taken.text("layout")
    if not shape:
        return
    axes = [word.partition(":")[0] for word in _words(shape)]
    rules = []
    for word in _words(layout):
        dimension, _, axis = word.partition(":")
        if axis in axes and dimension in _dimensions():
            rules.append(word)
        else:
            out.ignored.append(f"layout rule {word}")
    out.put("mesh.shape", ", ".join(_words(shape)), "mesh_shape")
    out.put("mesh.layout", ", ".join(rules), "layout")


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,.;]+", text) if word]


def _dimensions() -> set[str]:
    from neojax.mesh import ALIASES, DIMENSIONS  # imports JAX, which reading a YAML config does not need

    return {*DIMENSIONS, *ALIASES}


def _data(taken: Taken, out: Conversion) -> None:
    datasets = taken.drop("datasets") or []
    if isinstance(datasets, str):
        datasets = [datasets]
    train, validation, tokenizer, names = [], [], "", []
    for entry in datasets:
        name, *rest = entry if isinstance(entry, list) and entry else [entry]
        weight = rest[2] if len(rest) > 2 and rest[2] is not None else 1.0
        if not isinstance(name, str):
            raise NeojaxError(
                f"{taken.path}: datasets: expected a name or [name, n, mode, weight], got {entry!r}"
            )
        names.append(name)
        found = _dataset(taken.path, name)
        if found is None:  # training says so, in `missing`; to look at the model one needs no data
            train.append({"path": f"{ABSENT}{name}.json", "weight": float(weight)})
            continue
        train.append({"path": _place(taken.path, found.get("path", "")), "weight": float(weight)})
        if found.get("eval_path"):
            validation.append({"path": _place(taken.path, found["eval_path"])})
        if not found.get("tokenizer_is_pretrained") and found.get("tokenizer_path"):
            tokenizer = tokenizer or _place(taken.path, found["tokenizer_path"])
    if train:
        out.put("data.train", train, f"datasets: {', '.join(names)}")
    if validation and taken.count("eval_steps", 0):
        out.put("data.validation", validation, "eval_path of the dataset")
    if tokenizer:
        out.put("data.tokenizer", tokenizer, "tokenizer_path of the dataset")


def _dataset(config: Path, name: str) -> dict[str, Any] | None:
    """The dataset config `name`: beside the config, or where gpt-neo looked from its checkout."""
    for folder in (config.parent, config.parent.parent, Path("configs"), Path(".")):
        path = folder / "dataset_configs" / f"{name}.json"
        if path.is_file():
            return read_json(path)
    return None


def _place(config: Path, text: str) -> str:
    """A path of a dataset config: as it is, or beside the config where only that leads anywhere."""
    if "://" in text or Path(text).is_absolute():
        return text
    here = any(Path(".").glob(text)) if text else False
    beside = config.parent / text
    return str(beside) if text and not here and any(config.parent.glob(text)) else text


def _train(taken: Taken, out: Conversion) -> None:
    batch_size, steps = taken.count("train_batch_size", 8), taken.count("train_steps", 1000)
    if run_dir := taken.text("model_path"):
        out.put("train.run_dir", run_dir, "model_path")
    out.put("train.batch_size", batch_size, "train_batch_size")
    out.put("train.steps", steps, "train_steps")
    rows = _microbatch(taken, out, batch_size)
    out.put(
        "train.precision", "bfloat16" if taken.text("precision") == "bfloat16" else "float32", "precision"
    )
    if taken.flag("recompute_grad"):
        out.put("train.remat", "full", "recompute_grad")
    _optimizer(taken, out)
    out.put("train.checkpoint_every", CHECKPOINT_EVERY, "--steps_per_checkpoint")
    if evaluations := taken.count("eval_steps", 0):
        tokens = evaluations * taken.count("eval_batch_size", rows)
        out.put("train.eval_every", CHECKPOINT_EVERY, "--steps_per_checkpoint")
        out.put("train.eval_batches", max(1, -(-tokens // rows)), "eval_steps, in batches of ours")
    if "seed" in taken.raw:
        out.put("train.seed", taken.count("seed", 0), "seed")
    masks = {name: taken.drop(f"mlm_{name}") for name in MLM}
    if taken.raw.get("mlm_training") is not None and taken.flag("mlm_training"):
        if masks["mask_id"] is None:
            raise NeojaxError(
                f"{taken.path}: mlm_training needs mlm_mask_id, the id that stands for a masked token"
            )
        for name, value in masks.items():
            if value is not None:
                out.put(f"train.mlm_{name}", value, f"mlm_{name}")


def _microbatch(taken: Taken, out: Conversion, batch_size: int) -> int:
    """Rows of one forward pass over all replicas: the per-replica number, lowered until it divides, times replicas."""
    tokens = taken.count("tokens_per_mb_per_replica", 0)
    if not tokens:
        return batch_size
    mesh = out.sections.get("mesh", {"shape": "", "layout": ""})
    sizes = dict(word.split(":") for word in _words(mesh["shape"]))
    axis = dict(word.split(":") for word in _words(mesh["layout"])).get("batch")
    replicas = int(sizes[axis]) if axis in sizes else 1
    own = max(1, batch_size // replicas)
    rows = min(own, max(1, tokens // int(out.sections["model"]["n_ctx"])))
    while own % rows:
        rows -= 1
    if own * replicas == batch_size:
        out.put("train.microbatch", rows * replicas, "tokens_per_mb_per_replica")
        return rows * replicas
    return batch_size


def _optimizer(taken: Taken, out: Conversion) -> None:
    out.put("train.learning_rate", taken.number("lr", 6e-4), "lr")
    is_adam = taken.text("opt_name", "adam").lower() == "adam"
    _schedule(taken, out, is_adam)
    adam = {key: taken.number(key, default) for key, default in ADAM.items()}
    adafactor = {ours: (taken.number(key, none), key) for ours, (key, none) in ADAFACTOR.items()}
    if is_adam:
        out.put("train.bias_correction", False, "opt_name adam: without bias correction")
        for key, value in adam.items():
            out.put(f"train.{key}", value, key)
    else:
        out.put("train.optimizer", "adafactor", "opt_name")
        for ours, (value, key) in adafactor.items():
            out.put(f"train.{ours}", value, key)
        out.put("train.weight_decay", 0.0, "gpt-neo's Adafactor decayed no weights")
    out.put("train.no_decay", _no_decay(out.sections["model"]), "names matching norm or bias, but not ln_f")
    out.put("train.clip_norm", taken.number("gradient_clipping", 0.0), "gradient_clipping")
    out.put("train.z_loss", taken.number("z_loss", 1e-4), "z_loss")
    if taken.flag("entmax_loss"):
        out.put("train.loss", "entmax", "entmax_loss")


def _schedule(taken: Taken, out: Conversion, is_adam: bool) -> None:
    """The decay and warmup of lr. gpt-neo worked them out for Adafactor too, and then gave it the bare lr."""
    decay = taken.text("lr_decay", "none")
    if decay not in ("linear", "cosine", "none"):
        raise NeojaxError(f"{taken.path}: lr_decay: expected linear, cosine or none, got {decay!r}")
    warmup, end = taken.count("warmup_steps", 0), taken.count("lr_decay_end", 0)
    if not is_adam:
        unread = {"lr_decay": decay != "none", "lr_decay_end": end, "warmup_steps": warmup}
        out.ignored += [f"{key} (as for gpt-neo's Adafactor)" for key, given in unread.items() if given]
        out.put("train.schedule", "constant", "gpt-neo's Adafactor took lr as it is")
        out.put("train.warmup_steps", 0, "gpt-neo's Adafactor took lr as it is")
        return
    out.put("train.schedule", "constant" if decay == "none" else decay, "lr_decay")
    out.put("train.warmup_steps", warmup, "warmup_steps")
    out.put("train.warmup_scales_decay", True, "as gpt-neo warms up")
    if end:
        out.put("train.decay_steps", end, "lr_decay_end")
    out.put("train.min_lr_ratio", FLOOR, "gpt-neo's floor")


def _no_decay(model: dict[str, Any]) -> list[str]:
    """Our names of the parameters that gpt-neo calls norm_1, norm_2, norm_rezero or bias."""
    names = ["*_bias"]
    return [*names, "*.gate_?.scale"] if model.get("rezero") else [*names, "*.norm_?.*"]


def missing(run_dir: str, train: Iterable[SourceConfig], validation: Iterable[SourceConfig]) -> None:
    """Raises `NeojaxError`, one line, for paths that a converted config has from gpt-neo's world and this machine has not."""
    causes, helps = [], []
    for key, sources in (("data.train", train), ("data.validation", validation)):
        absent = [s.path for s in sources if s.path.startswith(ABSENT)]
        remote = [s.path for s in sources if "://" in s.path]
        causes += [f"there is no {path}, which datasets names" for path in dict.fromkeys(absent)]
        causes += [f"{path} is not on this machine" for path in dict.fromkeys(remote)]
        helps += [f"{key}=PATH"] if absent or remote else []
    if "://" in run_dir:
        causes.append(f"{run_dir} is no folder to write to")
        helps.append(f"train.run_dir=runs/{run_dir.rstrip('/').rpartition('/')[2]}")
    if causes:
        raise NeojaxError(f"{'; '.join(causes)}; give {' '.join(helps)}")


def convert_text(path: str | Path) -> str:
    """The gpt-neo config `path` as YAML for `neojax train`, each key with the original's name beside it."""
    conversion = read(path)
    lines = [f"# From {Path(path).name}, a gpt-neo config; the original's keys stand on the right."]
    if conversion.ignored:
        lines.append(f"# Without: {', '.join(conversion.ignored)}")
    for section in ("model", "mesh", "data", "train"):
        if section not in conversion.sections:
            continue
        lines += ["", f"{section}:"]
        for key, value in conversion.sections[section].items():
            text = f"  {key}: {_yaml(value)}"
            origin = conversion.origin.get(f"{section}.{key}", "the default")
            lines.append(text if origin == key else f"{text}  # {origin}")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
