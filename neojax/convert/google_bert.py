"""Checkpoints of google-research/bert and /albert: a TensorFlow bundle, and the JSON config of its model.

The variables are those of `bert/` and of the heads beside it, each with `adam_m` and `adam_v` where it was
saved in training, and `global_step`. Facts: `modeling.py`, `run_pretraining.py`, `run_classifier.py` and
`run_squad.py` of both repositories. Their `gelu` is the approximation by tanh, here `gelu_new`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neojax import config as configuration
from neojax.config import HeadConfig, ModelConfig
from neojax.convert import bundle
from neojax.convert.bundle import Bundle
from neojax.convert.hf_config import config_of, read_json
from neojax.convert.hf_tensors import Place, axes_of
from neojax.convert.hf_tokenizer import read_tokenizer
from neojax.convert.mesh_tf import MOMENTS, STEP, MeshTF
from neojax.convert.place import Index, place
from neojax.convert.tensor_files import TensorFiles
from neojax.data.tokenizer import n_ids
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.pieces import Piece, pieces

CONFIGS = ("bert_config.json", "albert_config.json")
WORDS = "bert/embeddings/word_embeddings"
HUB = "module/"  # before every name in checkpoints of TF-Hub

# role of a parameter -> its variable, and the dimensions of its axes; `width` is that of the embedding
EMBEDDINGS = {
    "wte": (WORDS, "vocab width"),
    "wpe": ("bert/embeddings/position_embeddings", "positions width"),
    "token_types": ("bert/embeddings/token_type_embeddings", "token_types width"),
    "norm_e.scale": ("bert/embeddings/LayerNorm/gamma", "width"),
    "norm_e.bias": ("bert/embeddings/LayerNorm/beta", "width"),
    "mapping": ("bert/encoder/embedding_hidden_mapping_in/kernel", "token_embd embd"),
    "mapping_bias": ("bert/encoder/embedding_hidden_mapping_in/bias", "embd"),
}
HEADS = {
    "pooler.weight": ("bert/pooler/dense/kernel", "embd features"),
    "pooler.bias": ("bert/pooler/dense/bias", "features"),
    "mlm.dense": ("cls/predictions/transform/dense/kernel", "embd features"),
    "mlm.dense_bias": ("cls/predictions/transform/dense/bias", "features"),
    "mlm.norm.scale": ("cls/predictions/transform/LayerNorm/gamma", "features"),
    "mlm.norm.bias": ("cls/predictions/transform/LayerNorm/beta", "features"),
    "mlm.bias": ("cls/predictions/output_bias", "vocab"),
    "pair.weight": ("cls/seq_relationship/output_weights", "labels embd"),
    "pair.bias": ("cls/seq_relationship/output_bias", "labels"),
    "classifier.weight": ("output_weights", "labels embd"),
    "classifier.bias": ("output_bias", "labels"),
    "span.weight": ("cls/squad/output_weights", "labels embd"),
    "span.bias": ("cls/squad/output_bias", "labels"),
}
# Within a block: where a BERT and an ALBERT keep the kernel and bias of each product, or a norm.
PRODUCTS = {
    "attn.query": ("attention/self/query", "attention_1/self/query", "embd heads*head_dim"),
    "attn.key": ("attention/self/key", "attention_1/self/key", "embd heads*head_dim"),
    "attn.value": ("attention/self/value", "attention_1/self/value", "embd heads*head_dim"),
    "attn.out": ("attention/output/dense", "attention_1/output/dense", "heads*head_dim embd"),
    "mlp.up": ("intermediate/dense", "ffn_1/intermediate/dense", "embd mlp"),
    "mlp.down": ("output/dense", "ffn_1/intermediate/output/dense", "mlp embd"),
}
NORMS = {
    "norm_1": ("attention/output/LayerNorm", "LayerNorm"),
    "norm_2": ("output/LayerNorm", "LayerNorm_1"),
}


def is_bert(files: Bundle) -> bool:
    """Whether these are the variables of a BERT or an ALBERT."""
    return WORDS in files.shapes or HUB + WORDS in files.shapes


def load(
    path: str | Path,
    config: str | Path | None = None,
    layout: Layout | None = None,
    compute: Compute | None = None,
) -> MeshTF:
    """The checkpoint at `path`, a folder or a prefix, with the heads that it has.

    config: the JSON of the model, by default `bert_config.json` or `albert_config.json` beside it; layout:
    default one device; compute: how it computes. Weights are float32 in the stored layout. Raises
    `NeojaxError`, naming the file, for whatever is damaged or does not fit together.
    """
    prefix = bundle.find(Path(path))
    if prefix is None:
        raise NeojaxError(f"{path} has no TensorFlow checkpoint; expected NAME.index and its data")
    files = Bundle(prefix)
    source = Path(config) if config else _find_config(prefix.parent)
    settings = _model(source, files)
    model = Transformer(settings, layout, compute)
    model.stored()  # a layout that does not fit, before files are read
    tokenizer = read_tokenizer(prefix.parent)
    if tokenizer is not None and n_ids(tokenizer) > settings.n_vocab:
        raise NeojaxError(
            f"{prefix.parent}: the tokenizer has {n_ids(tokenizer)} ids but {source} has {settings.n_vocab}"
        )
    where = {piece: _place(piece, settings, files) for piece in pieces(model)}
    _check(where, files, source)
    names = [p.tensor for p in where.values()]
    slots = [f"{name}/{slot}" for name in names for slot in MOMENTS.values()]
    slots = slots if all(slot in files.shapes for slot in slots) else []
    files.check([*names, *slots, *({STEP} & files.shapes.keys())])

    def values(files: TensorFiles, suffix: str = "") -> Transformer:
        def read(piece: Piece, index: Index) -> np.ndarray:
            return where[piece].read(files, where[piece].tensor + suffix, index)

        return place(model, read)

    step = int(files.read(STEP, ())) if STEP in files.shapes else 0
    moments = (
        {ours: values(files, f"/{theirs}").params() for ours, theirs in MOMENTS.items()} if slots else {}
    )
    train = {"bias_correction": False, "weight_decay": 0.01, "beta2": 0.999, "epsilon": 1e-6}
    whole = configuration.from_dict(
        {"model": configuration.to_dict(settings), "train": train}, source=str(source)
    )
    return MeshTF(values(files).accompanied(tokenizer, None), whole, step, moments)


def _find_config(folder: Path) -> Path:
    found = [folder / name for name in CONFIGS if (folder / name).is_file()]
    if len(found) != 1:
        have = " and ".join(f.name for f in found) or "none of them is there"
        raise NeojaxError(f"{folder}: expected {' or '.join(CONFIGS)}; {have}; name it with --config")
    return found[0]


def _model(source: Path, files: Bundle) -> ModelConfig:
    """The model of the config at `source`, with the heads that the variables make up."""
    raw: dict[str, Any] = read_json(source)
    kind = "albert" if "embedding_size" in raw else "bert"
    raw = {"layer_norm_eps": 1e-12, **raw, "model_type": kind, "architectures": None}
    if raw.get("hidden_act") == "gelu":
        raw["hidden_act"] = "gelu_new"
    there = {role for role, (name, _) in HEADS.items() if _named(name, files) in files.shapes}
    kinds: tuple[str, ...] = tuple(kind for kind in ("mlm", "pair") if f"{kind}.bias" in there)
    labels = HeadConfig().labels
    if "span.bias" in there:
        kinds = ("question_answering",)
    elif "classifier.bias" in there:
        count = files.shapes[_named(HEADS["classifier.bias"][0], files)][0]
        kinds, labels = ("sequence_classification",), tuple(f"LABEL_{i}" for i in range(count))
    raw.pop("num_labels", None)
    config = config_of(raw, str(source))
    return replace(config, head=replace(config.head, kinds=kinds, labels=labels))


def _named(name: str, files: Bundle) -> str:
    return name if name in files.shapes else HUB + name


def _place(piece: Piece, config: ModelConfig, files: Bundle) -> Place:
    """Where a piece of the model is kept."""
    width = "embd" if config.embedding.width is None else "token_embd"
    if piece.layer is None:
        name, axes = {**EMBEDDINGS, **HEADS}[piece.role]
        return Place(piece, _named(name, files), axes_of(axes.replace("width", width)))
    is_albert = config.family == "albert"
    scope = f"bert/encoder/layer_{piece.layer}/"
    if is_albert:
        group, inner = divmod(piece.layer, config.inner_layers)
        scope = f"bert/encoder/transformer/group_{group}/inner_group_{inner}/"
    part, _, which = piece.role.rpartition(".")
    if part in NORMS:
        name, axes = f"{NORMS[part][is_albert]}/{'gamma' if which == 'scale' else 'beta'}", "embd"
    else:
        product = piece.role.removesuffix("_bias")
        *names, axes = PRODUCTS[product]
        name = f"{names[is_albert]}/{'kernel' if product == piece.role else 'bias'}"
        axes = axes if product == piece.role else axes.split()[1]
    return Place(piece, _named(scope + name, files), axes_of(axes))


def _check(where: Mapping[Piece, Place], files: Bundle, source: Path) -> None:
    """Raises `NeojaxError` where a variable is missing, misshapen, or of a layer that the model has not."""
    wanted = {p.tensor: p.tensor_shape for p in where.values()}
    for name, shape in wanted.items():
        have = files.shapes.get(name)
        if have != shape:
            there = "is not there" if have is None else f"has shape {list(have)}"
            raise NeojaxError(
                f"{files.prefix}.index: {name} {there}, but by {source} it has {list(shape)}; is it the "
                "config of this model?"
            )
    of_optimizer = re.compile(r".*/adam_[mv]")
    extra = [
        name
        for name in files.shapes
        if name.removeprefix(HUB).startswith("bert/encoder/")
        and name not in wanted
        and not of_optimizer.fullmatch(name)
    ]
    if extra:
        raise NeojaxError(f"{files.prefix}.index holds {extra[0]}, which the model of {source} has not")
