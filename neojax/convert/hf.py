"""Hugging Face directories in and out: weights, config and tokenizer of every family that transformers has.

Loading places each tensor on the mesh piece by piece (`convert.place`); saving writes safetensors shard by
shard, so neither holds the model in host memory.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from neojax.config import HeadConfig
from neojax.convert import hf_tensors
from neojax.convert.hf_config import CONFIG, is_hf_dir, names_of, read_config, to_json
from neojax.convert.hf_tensors import Place
from neojax.convert.hf_tokenizer import read_eos_token_id, read_tokenizer, write_tokenizer
from neojax.convert.place import Fresh, Index, Narrow, place
from neojax.convert.tensor_files import open_tensors
from neojax.data.special_tokens import SpecialTokens
from neojax.data.tokenizer import first_tokens, n_ids
from neojax.errors import NeojaxError
from neojax.files import new_folder
from neojax.layout.mesh import Layout
from neojax.layout.named import LowRank, Quantized
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.pieces import Piece, pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["is_hf_dir", "load", "read_config", "read_eos_token_id", "read_tokenizer", "save"]

WEIGHTS = "model.safetensors"
MAX_SHARD_SIZE = 5_000_000_000


def load(
    path: str | Path,
    layout: Layout | None = None,
    compute: Compute | None = None,
    narrow: Narrow = lambda name, dims, value: value,
    *,
    head: HeadConfig | None = None,
    seed: int = 0,
) -> Transformer:
    """The model in the Hugging Face directory `path`, weights float32 in the stored layout of `layout`.

    layout: default one device; compute: how it computes; narrow: as in `convert.place.place`; head: heads
    that an encoder is to have in place of those that config.json says; seed: of initial values. Its
    `tokenizer` and `eos_token_id` come with it, None where the directory has none. Heads of an encoder that
    the files have not begin at random, as a warning says. Raises `NeojaxError`, naming the file, for whatever
    does not fit together.
    """
    path = Path(path)
    config = read_config(path)
    config = config if head is None else replace(config, head=head)
    model = Transformer(config, layout, compute)
    tokenizer = read_tokenizer(path)
    if tokenizer is not None and n_ids(tokenizer) > config.n_vocab:
        raise NeojaxError(
            f"{path}: the tokenizer has {n_ids(tokenizer)} ids but {CONFIG} has vocab_size={config.n_vocab}; "
            "is it the tokenizer of this model?"
        )
    model.stored()  # a layout that does not fit, before files are opened
    files = open_tensors(path)
    family_names = names_of(config.family).of_heads(config.head.kinds)
    where = {p.piece: p for p in hf_tensors.places(family_names, config, pieces(model))}
    matched = hf_tensors.match(family_names, where.values(), files, path)
    if matched.missing or matched.unused:
        warnings.warn(_partly(path, matched), stacklevel=2)
    fresh = Fresh(model, seed)

    def read(piece: Piece, index: Index) -> np.ndarray:
        if (name := matched.names.get(where[piece].tensor)) is None:
            return fresh.read(piece, index)
        return where[piece].read(files, name, index)

    first = () if tokenizer is None else first_tokens(tokenizer)
    mask = None if tokenizer is None or config.causal else SpecialTokens.of(tokenizer).mask
    return place(model, read, narrow).accompanied(tokenizer, read_eos_token_id(path), first, mask)


def _partly(path: Path, matched: hf_tensors.Match) -> str:
    """What to say of a directory that has not the heads of the model, or others."""
    parts = []
    if matched.missing:
        parts.append(f"has no {', '.join(matched.missing)}, which begin at random and are to be trained")
    if matched.unused:
        parts.append(f"holds {', '.join(matched.unused)}, for which this model has no head")
    return f"{path} {'; it '.join(parts)}"


def save(
    model: Transformer,
    path: str | Path,
    tokenizer: "Tokenizer | None" = None,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    replace: bool = False,
) -> None:
    """Writes `model` as a directory that transformers' `AutoModelForCausalLM` (of an encoder, that of its
    heads) and `AutoTokenizer` load.

    Weights are safetensors in float32, in files of at most `max_shard_size` bytes (or one tensor); the
    tokenizer is `tokenizer`, or the model's. The directory appears when it is complete. Raises `NeojaxError`
    for a model that transformers cannot express, and where `path` is in use, unless it is to `replace` what
    is there.
    """
    if any(isinstance(param.get_value(), LowRank) for _, param in model.named_params()):
        raise NeojaxError(
            "this model has low-rank additions, which are no part of a Hugging Face directory; merge them "
            "first, with neojax convert --merge or neojax.models.merging.merged(model)"
        )
    tokenizer, eos_token_id = tokenizer or model.tokenizer, model.eos_token_id
    first = () if tokenizer is None or not model.config.causal else first_tokens(tokenizer)
    ends: dict[str, int | None] = {
        "bos_token_id": first[0] if first else eos_token_id,
        "eos_token_id": eos_token_id,
    }
    generates = model.config.causal and "lm" in model.config.head.kinds
    # A classifier of transformers finds the last token of a row by the padding behind it.
    if model.config.causal and not generates:
        pad = None if tokenizer is None else SpecialTokens.of(tokenizer).pad
        ends["pad_token_id"] = eos_token_id if pad is None else pad
    settings = {**to_json(model.config), **(ends if model.config.causal else {})}
    names = names_of(model.config.family).of_heads(model.config.head.kinds)
    tensors = hf_tensors.to_write(names, model.config, pieces(model))
    for name, value in model.params().items():
        if isinstance(value, Quantized) or value.dtype != jnp.float32:
            kept = "int8" if isinstance(value, Quantized) else value.dtype.name
            raise NeojaxError(
                f"parameter {name} of this model is kept in {kept}, which is not what was trained; load it "
                "with "
                'weights="float32"'
            )
    with new_folder(path, replace) as folder:
        _write_json(folder / CONFIG, settings)
        if generates:
            _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
        if tokenizer is not None:
            types = model.config.embedding.token_types > 1
            write_tokenizer(tokenizer, folder, model.config.n_ctx, eos_token_id, first, types)
        _write_weights(model, tensors, folder, max_shard_size)


def _write_weights(
    model: Transformer, tensors: dict[str, list[Place]], folder: Path, max_shard_size: int
) -> None:
    params, dims = model.params(), model.dims()
    sizes = hf_tensors.sizes(tensors)
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > max_shard_size:
            shards.append([])
        shards[-1].append(name)
    files = [WEIGHTS]
    if len(shards) > 1:
        stem = WEIGHTS.removesuffix(".safetensors")
        files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        places = {name: file for file, names in zip(files, shards) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        _write_json(folder / f"{WEIGHTS}.index.json", index)
    for file, names in zip(files, shards):
        values = {name: assembled(params, dims, tensors[name]) for name in names}
        try:
            save_file(values, folder / file, metadata={"format": "pt"})
        except SafetensorError as e:
            raise OSError(str(e)) from None
        shutil.copymode(folder / CONFIG, folder / file)  # safetensors lets nobody else read it


def assembled(params: dict[str, Any], dims: Mapping[str, tuple[str, ...]], inside: list[Place]) -> np.ndarray:
    """The tensor that the pieces `inside` make up; padding of the vocabulary is left out."""
    tensor = np.empty(inside[0].tensor_shape, np.float32)
    for where in inside:
        piece = where.piece
        value, left = params[piece.param], list(dims[piece.param])
        for dim, entry in piece.at:
            value = jax.lax.index_in_dim(value, entry, left.index(dim), keepdims=False)
            left.remove(dim)
        where.write(tensor, np.asarray(value)[tuple(map(slice, piece.shape))])
    return tensor


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
