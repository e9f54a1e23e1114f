"""PEFT's files of low-rank additions: their settings, and which tensor holds which part of which matrix.

A folder has adapter_config.json and adapter_model.safetensors. For a linear layer of the base,
`lora_A.weight` is [rank, in] and `lora_B.weight` [out, rank], whatever the order in which the base keeps its
own. Facts: `LoraConfig` and `save_and_load.py` of huggingface/peft.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neojax.convert.hf_config import is_hf_dir, read_json
from neojax.convert.hf_tensors import Factor, Place
from neojax.convert.tensor_files import Safetensors, TensorFiles, TorchFiles
from neojax.errors import NeojaxError
from neojax.models.families import HuggingFace
from neojax.models.matrices import SUMMED
from neojax.runs.run_dir import is_run_dir

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
PART = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
REFUSED = {
    "use_dora": "DoRA, which scales whole columns",
    "lora_bias": "additions with a bias",
    "layer_replication": "copies of layers",
    "target_parameters": "additions to what is in no linear layer",
    "trainable_token_indices": "single rows of the embedding",
}
CHANGING = ("pissa", "olora", "corda", "loftq", "eva_loftq")
"""Initial values for which PEFT changes the base too."""


@dataclass(frozen=True)
class Settings:
    """What adapter_config.json says of additions; the patterns are regular expressions of the ends of layers'
    names, whose rank or alpha is another."""

    base: str
    alpha: float
    dropout: float
    rs: bool
    alphas: Mapping[str, float]

    def alpha_of(self, module: str) -> float:
        """The alpha of the linear layer `module`."""
        found = (a for name, a in self.alphas.items() if re.match(rf"(.*\.)?({name})$", module))
        return next(found, self.alpha)

    def scale(self, module: str, rank: int) -> float:
        """How often the addition to `module` counts."""
        return self.alpha_of(module) / (rank**0.5 if self.rs else rank)


def is_adapter_dir(path: str | Path) -> bool:
    """Whether `path` is a folder of PEFT's that is no model in itself."""
    return (Path(path) / CONFIG).is_file() and not is_hf_dir(path)


def read_settings(folder: Path) -> Settings:
    """The settings of the adapter in `folder`. Raises `NeojaxError` for kinds that neojax has not."""
    source = folder / CONFIG
    raw = read_json(source)
    if (kind := raw.get("peft_type")) != "LORA":
        raise NeojaxError(f"{source}: peft_type={kind!r}; neojax reads LORA")
    for key, what in REFUSED.items():
        if raw.get(key):
            raise NeojaxError(f"{source}: {key}={raw[key]!r}: neojax has no {what}; merge it with peft")
    start = raw.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(CHANGING):
        raise NeojaxError(
            f"{source}: init_lora_weights={start!r} changes the base too, so that the adapter does not fit "
            "the base as it is; merge it with peft"
        )
    numbers = {}
    for key, usual in (("lora_alpha", 8), ("lora_dropout", 0.0)):
        value = raw.get(key, usual)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NeojaxError(f"{source}: {key}={value!r}: expected a number")
        numbers[key] = float(value)
    alphas = raw.get("alpha_pattern") or {}
    try:
        alphas = {str(name): float(value) for name, value in alphas.items()}
        any(re.compile(name) for name in alphas)
    except (AttributeError, TypeError, ValueError, re.error):
        raise NeojaxError(f"{source}: alpha_pattern={alphas!r}: expected patterns with numbers") from None
    base = raw.get("base_model_name_or_path") or ""
    alpha, dropout = numbers["lora_alpha"], numbers["lora_dropout"]
    return Settings(str(base), alpha, dropout, bool(raw.get("use_rslora")), alphas)


def base_of(folder: Path) -> Path:
    """The folder of the base that adapter_config.json names: as it is from here, or beside the adapter.
    Raises `NeojaxError` where there is none."""
    name = read_settings(folder).base
    found = (path for path in (Path(name), folder / name) if name and (is_hf_dir(path) or is_run_dir(path)))
    path = next(found, None)
    if path is None:
        says = f"names the base {name!r}, which is no folder of a model here" if name else "names no base"
        raise NeojaxError(
            f"{folder / CONFIG} {says}; give the base yourself: neojax sample BASE --adapter {folder}, "
            f"neojax convert BASE {folder} DEST"
        )
    return path


def open_weights(folder: Path) -> TensorFiles:
    """The tensors of the adapter in `folder`. Raises `NeojaxError`."""
    for name, kind in zip(WEIGHTS, (Safetensors, TorchFiles)):
        if (folder / name).is_file():
            return kind([folder / name], {})
    raise NeojaxError(f"{folder} has no weights; expected {' or '.join(WEIGHTS)}")


def canonical(names: HuggingFace, key: str) -> str:
    """The name of a tensor of an adapter, as the base's own would be called: without PEFT's prefix, with that
    of the base, which a model without head has not."""
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    for pattern, replacement in names.renamed:
        name = re.sub(pattern, replacement, name)
    is_head = any(name == tensor for tensor, _ in names.heads.values())
    is_whole = is_head or name.startswith(names.prefix) or name == names.output
    return name if is_whole else names.prefix + name


def module_of(place: Place) -> str:
    """The name of the linear layer whose matrix lies at `place`."""
    return place.tensor.removesuffix(".weight")


def is_matrix(place: Place) -> bool:
    """Whether what lies at `place` is a matrix of a block, to which there may be an addition."""
    return place.piece.layer is not None and place.piece.dims in SUMMED


def part(place: Place, rank: int, which: str) -> Place:
    """Where the `lora_A` or `lora_B` (`which`) of the matrix at `place` lies, and its dimensions in a
    model."""
    piece, summed = place.piece, SUMMED[place.piece.dims]
    reads = [{f for f in axis if isinstance(f, str)} <= set(summed) for axis in place.axes]
    sizes = {**dict(zip(piece.dims, piece.shape)), "rank": rank}
    own = place.axes[reads.index(which == "A")]
    axes: tuple[tuple[Factor, ...], ...] = (("rank",), own)
    dims = *summed, "rank"
    if which == "B":
        axes, dims = (own, ("rank",)), ("rank", *(dim for dim in piece.dims if dim not in summed))
    shape = tuple(sizes[dim] for dim in dims)
    tensor = f"{module_of(place)}.lora_{which}.weight"
    return Place(replace(piece, dims=dims, shape=shape), tensor, axes)


def endings(wanted: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The shortest ends of names, whole words, that tell the layers `wanted` from the other `modules`."""
    wanted, others = list(wanted), set(modules) - set(wanted)
    found = set()
    for name in wanted:
        words = name.split(".")
        ends = (".".join(words[-n:]) for n in range(1, len(words) + 1))
        found.add(next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)))
    return sorted(found)


def settings_of(
    base: str, rank: int, alpha: float, dropout: float, rs: bool, task: str | None, **more: Any
) -> dict[str, Any]:
    """The content of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "use_rslora": rs,
        "use_dora": False,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        **more,
    }
