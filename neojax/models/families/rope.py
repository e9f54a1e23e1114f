"""Rotary positions as transformers' config.json says them, in the keys of version 5 or before.

Facts: `modeling_rope_utils` of transformers.
"""

from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError

SCALED = {
    "factor": "scaling_factor",
    "low_freq_factor": "scaling_long",
    "high_freq_factor": "scaling_short",
    "original_max_position_embeddings": "scaling_context",
}
KINDS = {"default": (), "linear": ("factor",), "llama3": tuple(SCALED)}
"""rope_type -> its keys."""
WRITTEN = ("positions.base", "positions.scaling", *(f"positions.{ours}" for ours in SCALED.values()))
"""The keys of ours that are read and written here."""


def rope(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """All that a config.json says of rotary positions, by the names of `rope_parameters`."""
    found = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if raw.get(key) is not None}
    for key in ("rope_scaling", "rope_parameters"):
        if (given := raw.get(key)) is not None and not isinstance(given, Mapping):
            raise NeojaxError(f"{source}: {key}={given!r}: expected keys and values")
        found |= given or {}
    return found


def read(said: Mapping[str, Any], n_ctx: Any, source: str) -> dict[str, Any]:
    """The keys of ours for what `rope` gives. Raises `NeojaxError` for a scaling that is not built."""
    kind = said.get("rope_type", said.get("type", "default"))
    if not isinstance(kind, str) or kind not in KINDS:
        raise NeojaxError(
            f"{source}: rope_type {kind!r} is not supported, only {', '.join(KINDS)}: with other rotary "
            "positions it would be another model"
        )
    base = said.get("rope_theta")
    keys = {
        "positions.base": 10000.0 if base is None else base,
        "positions.scaling": "none" if kind == "default" else kind,
    }
    for theirs in KINDS[kind]:
        value = said.get(theirs, n_ctx if theirs.startswith("original") else None)
        if value is None:
            raise NeojaxError(f"{source}: rope_type {kind} without {theirs}; is the file whole?")
        keys[f"positions.{SCALED[theirs]}"] = value
    return keys


def write(config: ModelConfig, **more: Any) -> dict[str, Any]:
    """The keys of a config.json for `config`: `rope_parameters`, with `more` in it, and what was read before
    transformers 5."""
    kind = "default" if config.positions.scaling == "none" else config.positions.scaling
    values = {theirs: getattr(config.positions, SCALED[theirs]) for theirs in KINDS[kind]}
    said = {"rope_type": kind, "rope_theta": config.positions.base, **values, **more}
    older = {} if kind == "default" else {"rope_scaling": said}
    return {"rope_parameters": said, **older, "rope_theta": config.positions.base}
