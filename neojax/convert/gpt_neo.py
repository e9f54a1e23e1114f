"""gpt-neo's JSON configs: what each key says in ours.

`read` gives the sections of our config, `convert_text` the same as commented YAML. What is given on the
command line in place of a key is not read from it, so that no value there is in the way. The mapping, key by
key:

- n_embd n_vocab n_ctx n_layer share_parameters: model, under the same names; n_head embed_dropout
  attn_dropout
  res_dropout attention_types num_mem_kv mlp_glu macaron scale_by_depth scale_by_in: in the groups of model
  (`neojax.config.spelling`); local_attention_radius: model.attention.window; intermediate_size:
  model.mlp.width; no_weight_tie: model.embedding.tied, negated.
- rezero, else scalenorm: model.norm.kind; rotary_emb (`false` is off; gpt-neo took any value for on), else
  axial_pos_emb:
  model.positions.kind.
- moe_layers moe_params moe_activation: model.experts (`neojax.convert.gpt_neo_experts`).
- activation_fn, else activation_function: model.mlp.activation; gelu is the tanh form, gelu_new. (gpt-neo
  read only the
  first spelling, so that its own configs, which use the second, always trained with gelu.)
- mesh_shape, layout: mesh.shape, mesh.layout. Layout rules that name no dimension or axis are left out, as
  gpt-neo did,
  but not silently.
- attention_types; before it was a key, `"model": "GPT2"` was a model of global layers (`gpt_neo_history`).
- datasets, through dataset_configs/NAME.json or as globs: path to data.train with the dataset's weight,
  eval_path to
  data.validation where eval_steps is not 0, a tokenizer file to data.tokenizer (`gpt_neo_data`). Sampling
  modes and stitching are not needed: documents are read as one stream.
- model_path: train.run_dir; train_batch_size: train.batch_size; train_steps: train.steps; precision:
  train.precision;
  recompute_grad: train.remat; tokens_per_mb_per_replica: train.microbatch, over all replicas; eval_steps:
  train.eval_batches, in our batches; seed.
- lr: train.learning_rate; lr_decay: train.schedule with a floor of 0.1 (none: constant); lr_decay_end:
  train.decay_steps; warmup_steps with warmup_scales_decay; opt_name: adam without bias correction, with
  beta1 beta2 epsilon weight_decay; anything else Adafactor, with train.adafactor_*: weight_decay, which
  gpt-neo gave it as the decay of its second moments, beta1, ada_epsilon1 and 2, and lr throughout, since it
  was given no schedule.
- gradient_clipping: train.clip_norm; z_loss (1e-4 if not given); entmax_loss: train.loss.
- mlm_training: model.causal, negated; mlm_*: train.mlm_*, used when mlm_training is true.
"""

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from neojax import config as configuration
from neojax.config import ACTIVATIONS
from neojax.config.spelling import FLAT
from neojax.convert.config_text import as_yaml
from neojax.convert.gpt_neo_data import convert_data
from neojax.convert.gpt_neo_experts import put_experts
from neojax.convert.gpt_neo_history import attention_types, refuse_other_models
from neojax.convert.hf_config import read_json
from neojax.convert.keys import Conversion, Keys, Sections
from neojax.errors import NeojaxError, suggest
from neojax.layout.names import ALIASES, DIMENSIONS, INTERNAL, parse_shape, words

REQUIRED = {"n_head": "16", "n_embd": "1024", "n_vocab": "50257", "n_layer": "24"}
RATES = ("embed_dropout", "attn_dropout", "res_dropout")
FLAGS = ("mlp_glu", "macaron", "share_parameters", "scale_by_depth", "scale_by_in")
COUNTS = {"local_attention_radius": "window_size", "intermediate_size": "n_inner", "num_mem_kv": "num_mem_kv"}
MLM_NUMBERS = ("mask_prob", "same_token_prob", "random_token_prob")
# Keys that gpt-neo reads and that have nothing to set here: sampling has flags, and data needs no hints.
NOTHING_TO_SET = (
    "iterations",
    "predict_steps",
    "predict_batch_size",
    "eval_batch_size",
    "eval_tasks",
    "model",
    "input_fn",
    "padding_id",
    "eos_id",
    "stop_at_token",
    "remove_partial_sequences",
    "no_dataset",
    "causal",
    "mlm_training",
    "steps_per_checkpoint",
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


def is_config(path: str | Path) -> bool:
    """Whether `path` is named as a gpt-neo config is."""
    return Path(path).suffix == ".json"


def load(path: str | Path, given: Sections = {}) -> dict[str, dict[str, Any]]:  # noqa: B006 - only read
    """The sections of our config that the gpt-neo config `path` means, for `config.from_dict`, less those
    `given`.

    Notes, and keys that mean nothing here, are listed once on stderr. Raises `NeojaxError`.
    """
    conversion = read(path, given)
    for note in conversion.notes:
        print(f"{path}: note: {note}", file=sys.stderr)
    if conversion.ignored:
        print(f"{path}: ignored: {', '.join(conversion.ignored)}", file=sys.stderr)
    return conversion.sections


def read(path: str | Path, given: Sections = {}) -> Conversion:  # noqa: B006 - only read
    """As `load`, with the origin of each value."""
    keys, out = Keys(Path(path), read_json(Path(path))), Conversion(given)
    if "model_type" in keys or "architectures" in keys:
        raise NeojaxError(
            f"{path} is a Hugging Face config, not a gpt-neo one; train from its directory with "
            "train.init_from"
        )
    refuse_other_models(keys)
    for convert in (_model, _mesh, convert_data, _train):
        convert(keys, out)
    for key in NOTHING_TO_SET:
        keys.get(key)
    out.ignored += [key if key.isprintable() else ascii(key) for key in sorted(keys.unread)]
    return out


def _model(keys: Keys, out: Conversion) -> None:
    out.put("model.family", lambda: "gpt_neo", "family")
    for key, example in REQUIRED.items():
        out.put(_name(key), partial(_required, keys, key, example), key)
    out.put("model.n_ctx", lambda: keys.count("n_ctx", 2048, least=1), "n_ctx")
    for key in RATES:
        out.put(_name(key), partial(keys.number, key), key)
    out.put("model.attention.types", lambda: attention_types(keys), "attention_types")
    for key in FLAGS:
        if key in keys:
            out.put(_name(key), partial(keys.flag, key), key)
    for key, flat in COUNTS.items():
        out.put(_name(flat), partial(keys.count, key), key)
    _kinds(keys, out)
    for name, key in {"model.embedding.tied": "no_weight_tie", "model.causal": "mlm_training"}.items():
        out.put(name, partial(_where, keys, key, False), key)
    origin = "activation_fn" if "activation_fn" in keys else "activation_function"
    out.put("model.mlp.activation", lambda: _activation(keys, origin), origin)
    put_experts(keys, out, partial(_activation, keys))


def _name(key: str) -> str:
    """The dotted name of the key of ours that is spelt as gpt-neo's."""
    return FLAT.get(key, f"model.{key}")


def _kinds(keys: Keys, out: Conversion) -> None:
    """What gpt-neo said by flags, of which one won: of norms rezero, of positions rotary ones."""

    def norm() -> str | None:
        scale = keys.flag("scalenorm")
        return "rezero" if keys.flag("rezero") else "scale" if scale else None

    def positions() -> str | None:
        axial = keys.get("axial_pos_emb")
        return "rotary" if keys.flag("rotary_emb") else "axial" if axial else None

    out.put("model.norm.kind", norm, "rezero" if "rezero" in keys else "scalenorm")
    out.put("model.positions.kind", positions, "rotary_emb" if "rotary_emb" in keys else "axial_pos_emb")
    if out.get("model.positions.kind") == "axial":
        out.put("model.positions.axial", lambda: keys.get("axial_pos_emb"), "axial_pos_emb")


def _where(keys: Keys, key: str, value: Any) -> Any:
    """`value` where the flag `key` is set, else None."""
    return value if keys.flag(key) else None


def _required(keys: Keys, key: str, example: str) -> int:
    if key not in keys:
        raise NeojaxError(
            f"{keys.path}: no key {key}, which a gpt-neo config needs; is it one? If so, give {_name(key)}, "
            f"such as {_name(key)}={example}"
        )
    return keys.count(key, least=1)


def _activation(keys: Keys, origin: str) -> str | None:
    keys.get("activation_function")
    name = keys.text(origin)
    name = {"gelu": "gelu_new", "swish": "silu"}.get(name, name)
    if name and name not in ACTIVATIONS:
        near = suggest(name, ACTIVATIONS)
        raise NeojaxError(f"{keys.path}: {origin}: no activation is called {name!r}{near}")
    return name or None


def _mesh(keys: Keys, out: Conversion) -> None:
    """The mesh in Mesh-TensorFlow's grammar, less the rules that name nothing."""
    if not keys.text("mesh_shape") and not out.is_given("mesh.shape"):
        keys.get("layout")
        return

    def shape() -> str:
        text = keys.text("mesh_shape")
        parse_shape(text, f"{keys.path}: mesh_shape")
        return ", ".join(words(text))

    out.put("mesh.shape", shape, "mesh_shape")
    axes = [word.partition(":")[0] for word in words(str(out.get("mesh.shape")))]
    names = {*DIMENSIONS, *INTERNAL, *ALIASES}

    rules: list[str] = []
    dropped: list[str] = []

    def layout() -> str:
        for word in words(keys.text("layout")):
            dimension, _, axis = word.partition(":")
            (rules if axis in axes and dimension in names else dropped).append(word)
        return ", ".join(rules)

    out.put("mesh.layout", layout, "layout")
    if not out.is_given("mesh.layout"):
        out.ignored += [f"layout rule {word}" for word in dropped]


def _train(keys: Keys, out: Conversion) -> None:
    out.put("train.run_dir", lambda: keys.text("model_path") or None, "model_path")
    out.put("train.batch_size", lambda: keys.count("train_batch_size", 8, least=1), "train_batch_size")
    out.put("train.steps", lambda: keys.count("train_steps", 1000, least=1), "train_steps")
    out.put("train.microbatch", lambda: _microbatch(keys, out), "tokens_per_mb_per_replica")
    out.put(
        "train.precision",
        lambda: "bfloat16" if keys.text("precision") == "bfloat16" else "float32",
        "precision",
    )
    out.put("train.remat", lambda: _where(keys, "recompute_grad", "full"), "recompute_grad")
    _optimizer(keys, out)
    out.put("train.checkpoint_every", lambda: CHECKPOINT_EVERY, "--steps_per_checkpoint")
    rows = out.count("train.microbatch", out.count("train.batch_size", 8))

    def eval_batches() -> int | None:
        sequences = keys.count("eval_steps", 0) * keys.count("eval_batch_size", rows, least=1)
        return -(-sequences // rows) or None

    out.put("train.eval_batches", eval_batches, "eval_steps, in batches of ours")
    out.put("train.eval_every", lambda: eval_batches() and CHECKPOINT_EVERY, "--steps_per_checkpoint")
    out.put("train.seed", lambda: keys.count("seed"), "seed")
    _masks(keys, out)


def _masks(keys: Keys, out: Conversion) -> None:
    trained = out.get("model.causal") is False
    if trained and "mlm_mask_id" not in keys and not out.is_given("train.mlm_mask_id"):
        raise NeojaxError(
            f"{keys.path}: mlm_training needs mlm_mask_id, the id that stands for a masked token; give "
            "train.mlm_mask_id=ID"
        )
    reads: dict[str, Any] = dict.fromkeys(MLM_NUMBERS, keys.number)
    reads |= {"mask_id": keys.count, "cls_token_id": keys.count, "mask_ignore_ids": keys.get}
    for name, ask in reads.items():
        key = f"mlm_{name}"
        if trained:
            out.put(f"train.{key}", partial(ask, key), key)
        else:
            keys.get(key)


def _microbatch(keys: Keys, out: Conversion) -> int | None:
    """Rows of one forward pass over all replicas: those of a replica, lowered until they divide its own,
    times replicas."""
    tokens = keys.count("tokens_per_mb_per_replica", 0)
    if not tokens:
        return None
    replicas, batch_size = _replicas(keys), out.count("train.batch_size", 8)
    own = max(1, batch_size // replicas)
    rows = min(own, max(1, tokens // out.count("model.n_ctx", 2048)))
    while own % rows:
        rows -= 1
    return rows * replicas if own * replicas == batch_size else None


def _replicas(keys: Keys) -> int:
    """The parts into which gpt-neo's own mesh split a batch; 1 where that is no mesh, and another is
    given."""
    try:
        sizes = parse_shape(keys.text("mesh_shape"))
        rules = dict(word.partition(":")[::2] for word in words(keys.text("layout")))
    except NeojaxError:
        return 1
    return max(1, sizes.get(rules.get("batch", ""), 1))


def _optimizer(keys: Keys, out: Conversion) -> None:
    def name() -> str | None:
        return None if keys.text("opt_name", "adam").lower() == "adam" else "adafactor"

    out.put("train.learning_rate", lambda: keys.number("lr", 6e-4), "lr")
    out.put("train.optimizer", name, "opt_name")
    is_adam = out.get("train.optimizer") != "adafactor"
    _schedule(keys, out, is_adam)
    if is_adam:
        out.put("train.bias_correction", lambda: False, "opt_name adam: without bias correction")
        for key, default in ADAM.items():
            out.put(f"train.{key}", partial(keys.number, key, default), key)
    else:
        for ours, (key, none) in ADAFACTOR.items():
            out.put(f"train.{ours}", partial(keys.number, key, none), key)
        out.put("train.weight_decay", lambda: 0.0, "gpt-neo's Adafactor decayed no weights")
    for key in (*ADAM, "ada_epsilon1", "ada_epsilon2"):
        keys.get(key)  # those of the other optimizer have no part in this run, as in gpt-neo
    rezero = out.get("model.norm.kind") == "rezero"
    out.put("train.no_decay", lambda: _no_decay(rezero), "names matching norm or bias, but not ln_f")
    out.put("train.clip_norm", lambda: keys.number("gradient_clipping", 0.0), "gradient_clipping")
    out.put("train.z_loss", lambda: keys.number("z_loss", 1e-4), "z_loss")
    out.put("train.loss", lambda: _where(keys, "entmax_loss", "entmax"), "entmax_loss")


def _schedule(keys: Keys, out: Conversion, is_adam: bool) -> None:
    """The decay and warmup of lr. gpt-neo worked them out for Adafactor too, and then gave it the bare lr."""
    if not is_adam:
        read = ("lr_decay", "warmup_steps", "lr_decay_end")
        unread = [key for key in read if keys.get(key) not in (None, "none", 0)]
        out.ignored += [f"{key} (as for gpt-neo's Adafactor)" for key in unread]
        out.put("train.schedule", lambda: "constant", "gpt-neo's Adafactor took lr as it is")
        out.put("train.warmup_steps", lambda: 0, "gpt-neo's Adafactor took lr as it is")
        return

    def decay() -> str:
        value = keys.text("lr_decay", "none")
        if value not in ("linear", "cosine", "none"):
            raise keys.wrong("lr_decay", "linear, cosine or none", value)
        return "constant" if value == "none" else value

    out.put("train.schedule", decay, "lr_decay")
    out.put("train.warmup_steps", lambda: keys.count("warmup_steps", 0), "warmup_steps")
    out.put("train.warmup_scales_decay", lambda: True, "as gpt-neo warms up")
    out.put("train.decay_steps", lambda: keys.count("lr_decay_end", 0) or None, "lr_decay_end")
    out.put("train.min_lr_ratio", lambda: FLOOR, "gpt-neo's floor")


def _no_decay(rezero: bool) -> list[str]:
    """Our names of the parameters that gpt-neo calls norm_1, norm_2, norm_rezero or bias."""
    return ["*_bias", "*.gate_?.scale" if rezero else "*.norm_?.*"]


def convert_text(path: str | Path, overrides: Iterable[str] = ()) -> str:
    """The gpt-neo config `path` as YAML for `neojax train`, each key with the original's name beside it.

    `section.key=value` in `overrides` stand in it in place of what `path` says. Raises `NeojaxError` for what
    training would refuse on any machine: nothing is written that would not be read.
    """
    overrides = list(overrides)
    conversion = read(path, configuration.override({}, overrides, str(path)))
    return as_yaml(conversion, overrides, str(path), f"{Path(path).name}, a gpt-neo config")
