"""Hugging Face directories in and out: GPT-Neo and GPT-2 weights, config and tokenizer.

Loading places each tensor on the mesh piece by piece (`convert.place`); saving writes safetensors shard by shard, so
neither holds the model in host memory.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from neojax.convert import hf_tensors
from neojax.convert.hf_config import CONFIG, is_hf_dir, read_config, to_json
from neojax.convert.hf_tensors import Place
from neojax.convert.hf_tokenizer import read_eos_token_id, read_tokenizer, write_tokenizer
from neojax.convert.place import Index, Piece, pieces, place
from neojax.convert.tensor_files import open_tensors
from neojax.data.tokenizer import n_ids
from neojax.errors import NeojaxError
from neojax.files import new_folder
from neojax.layout.mesh import Layout
from neojax.models import Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["is_hf_dir", "load", "read_config", "read_eos_token_id", "read_tokenizer", "save"]

WEIGHTS = "model.safetensors"
MAX_SHARD_SIZE = 5_000_000_000


def load(
    path: str | Path,
    layout: Layout | None = None,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    stacked: bool = True,
) -> Transformer:
    """The model in the Hugging Face directory `path`, weights float32 in the stored layout of `layout`.

    layout: default one device; dtype: compute type. Its `tokenizer` and `eos_token_id` come with it, None where the
    directory has none. Raises `NeojaxError`, naming the file, for whatever does not fit together.
    """
    path = Path(path)
    config = read_config(path)
    model = Transformer(config, layout, dtype=dtype, remat=remat, stacked=stacked)
    tokenizer = read_tokenizer(path)
    if tokenizer is not None and n_ids(tokenizer) > config.n_vocab:
        raise NeojaxError(
            f"{path}: the tokenizer has {n_ids(tokenizer)} ids but {CONFIG} has vocab_size={config.n_vocab}; "
            "is it the tokenizer of this model?"
        )
    model.stored()  # a layout that does not fit, before files are opened
    files = open_tensors(path)
    where = {p.piece: p for p in hf_tensors.places(config.family, pieces(model))}
    names = hf_tensors.match(where.values(), files, path)

    def read(piece: Piece, index: Index) -> np.ndarray:
        return where[piece].read(files, names[where[piece].tensor], index)

    model = place(model, read)
    model.tokenizer = tokenizer
    model.eos_token_id = read_eos_token_id(path)
    return model


def save(
    model: Transformer,
    path: str | Path,
    tokenizer: "Tokenizer | None" = None,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    replace: bool = False,
) -> None:
    """Writes `model` as a directory that transformers' `AutoModelForCausalLM` and `AutoTokenizer` load.

    Weights are safetensors in float32, in files of at most `max_shard_size` bytes (or one tensor); the tokenizer is
    `tokenizer`, or the model's. The directory appears when it is complete. Raises `NeojaxError` for a model that
    transformers cannot express, and where `path` is in use, unless it is to `replace` what is there.
    """
    tokenizer, eos_token_id = tokenizer or model.tokenizer, model.eos_token_id
    settings = to_json(model.config, eos_token_id)
    ends = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    tensors = hf_tensors.by_tensor(hf_tensors.places(settings["model_type"], pieces(model)))
    with new_folder(path, replace) as folder:
        _write_json(folder / CONFIG, settings)
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
        if tokenizer is not None:
            write_tokenizer(tokenizer, folder, model.config.n_ctx, eos_token_id)
        _write_weights(model, tensors, folder, max_shard_size)


def _write_weights(
    model: Transformer, tensors: dict[str, list[Place]], folder: Path, max_shard_size: int
) -> None:
    params = model.params()
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
        values = {name: _assemble(params, tensors[name]) for name in names}
        try:
            save_file(values, folder / file, metadata={"format": "pt"})
        except SafetensorError as e:
            raise OSError(str(e)) from None
        shutil.copymode(folder / CONFIG, folder / file)  # safetensors lets nobody else read it


def _assemble(params: dict[str, Any], inside: list[Place]) -> np.ndarray:
    """The tensor that the pieces `inside` make up; padding of the vocabulary is left out."""
    parts = []
    for where in inside:
        piece = where.piece
        value = params[piece.param]
        value = np.asarray(value if piece.repeat is None else value[piece.repeat])
        parts.append(where.write(value[tuple(slice(size) for size in piece.shape)]))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
