"""The names of dimensions, and the grammar of Mesh-TensorFlow that gives them axes: ``"name:value,
name:value"``."""

import re
from collections.abc import Sequence

from neojax.errors import NeojaxError, suggest

DIMENSIONS = {
    "batch": "sequences of a batch",
    "sequence": "positions of queries and of the residual stream",
    "memory_length": "positions of keys and values",
    "positions": "rows of the learned position table",
    "vocab": "token ids, padding included",
    "embd": "width of the residual stream",
    "token_embd": "width of the token embedding, where it is another (model.embedding.width)",
    "heads": "attention heads",
    "kv_heads": "heads of keys and values, where several heads of queries read one; split as heads",
    "head_dim": "width of one attention head",
    "mlp": "width of the MLP",
    "experts": "experts of a layer (model.experts.number)",
    "expert_mlp": "width of an expert",
    "memory_slots": "learned keys and values (model.attention.memory_slots)",
    "layers": "repetitions of the layer group; where they are split, the stages of a pipeline",
    "axial_rows": "rows of the first table of axial positions",
    "axial_columns": "rows of the second table of axial positions",
}
"""The dimensions that a layout may split."""
INTERNAL = {
    "scored": "tokens of a row that are scored, where these are picked out",
    "slots": "entries of the key-value cache while sampling",
    "key_dim": "width of a head of queries and keys where they are rotated or summed, which needs all of it",
    "microbatches": "parts of a batch, trained one after another",
    "projections": "queries, keys and values, or the last two, where one product makes them all",
    "rank": "of the low-rank additions to matrices (train.lora)",
    "group": "heads of queries that read one head of keys and values",
    "routes": "experts as the router tells them apart, which needs all of them",
    "token_types": "rows of the table of token types",
    "features": "what a head makes of hidden states before it scores them",
    "labels": "classes that a head tells apart",
    "choices": "answers to choose from",
}
"""Those that the implementation needs beside them; they are whole everywhere."""
ALIASES = {
    "intermediate_expanded": "mlp",
    "features_per_head": "head_dim",
    "expert_hidden": "expert_mlp",
    "embed_sequence": "positions",
    "n_vocab": "vocab",
    "mem_kv_sequence": "memory_slots",
    "axial_dim_0": "axial_rows",
    "axial_dim_1": "axial_columns",
}


def words(text: str) -> list[str]:
    """The words of Mesh-TensorFlow's grammar: separators are space , . ;"""
    return [word for word in re.split(r"[\s,.;]+", text) if word]


def parse_pairs(text: str, key: str) -> dict[str, str]:
    """Parses ``"a:b, c:d"`` to ``{"a": "b", "c": "d"}``; `key` is the config key for error messages."""
    pairs: dict[str, str] = {}
    for word in words(text):
        name, colon, value = word.partition(":")
        if not (name and colon and value):
            raise NeojaxError(f'{key}="{text}": {word!r} is not name:value, as in "batch:data, heads:model"')
        if name in pairs:
            raise NeojaxError(f'{key}="{text}": {name} is given twice; name every one once')
        pairs[name] = value
    return pairs


def parse_shape(text: str, key: str = "mesh.shape") -> dict[str, int]:
    """Parses ``"data:4, model:2"``; one size may be -1."""
    shape = {}
    for axis, size in parse_pairs(text, key).items():
        if not re.fullmatch(r"-1|[1-9][0-9]*", size):
            raise NeojaxError(f'{key}="{text}": the size of axis {axis} is {size!r}, expected a count or -1')
        shape[axis] = int(size)
    if list(shape.values()).count(-1) > 1:
        raise NeojaxError(f'{key}="{text}": only one axis can be -1 (take the devices that are left)')
    if not shape:
        raise NeojaxError(f'{key} is empty; name at least one axis, such as "data:-1"')
    return shape


def parse_layout(text: str, axes: Sequence[str], key: str) -> dict[str, tuple[str, ...]]:
    """Parses ``"batch:data, embd:data+model"`` to dimension -> axes, checked against the mesh's axes."""
    layout: dict[str, tuple[str, ...]] = {}
    for written, value in parse_pairs(text, key).items():
        dim = ALIASES.get(written, written)
        if dim not in DIMENSIONS and dim not in INTERNAL:
            near = suggest(written, [*DIMENSIONS, *ALIASES])
            raise NeojaxError(f'{key}="{text}": no dimension is called {written}{near}')
        if dim in INTERNAL:
            raise NeojaxError(
                f'{key}="{text}": {dim} cannot be split ({INTERNAL[dim]}); split another dimension'
            )
        if dim in layout:
            raise NeojaxError(f'{key}="{text}": {written} is another name of {dim}, which is given already')
        names = tuple(value.split("+"))
        for axis in names:
            if axis not in axes:
                near = suggest(axis, axes)
                raise NeojaxError(
                    f'{key}="{text}": {dim} is laid over {axis}, but the mesh has no such axis{near}'
                )
        if len(set(names)) < len(names):
            raise NeojaxError(f'{key}="{text}": {dim} is laid over one axis twice')
        layout[dim] = names
    return layout
