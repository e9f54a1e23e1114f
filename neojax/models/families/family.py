"""What a family of models is."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError
from neojax.models.compute import Compute
from neojax.models.embedding import Embedding
from neojax.models.encoder_head import EncoderHead
from neojax.models.head import LanguageHead
from neojax.models.stack import Stack

Parts = tuple[Embedding, Stack, LanguageHead | EncoderHead]
Build = Callable[[ModelConfig, Mapping[str, int], Compute], Parts]
"""(a model's configuration, the sizes of its dimensions, how it computes) -> its three parts."""


def class_names(raw: Mapping[str, Any], source: str) -> list[str]:
    """The classes of transformers that a config.json names. Raises `NeojaxError`."""
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise NeojaxError(f"{source}: architectures={names!r}: expected a list of names")
    return names


def nothing(*_: Any) -> dict[str, Any]:
    """What a family has nothing of its own of."""
    return {}


@dataclass(frozen=True)
class HuggingFace:
    """A family as transformers has it.

    `keys`: key of config.json -> (key of ours within `model`, transformers' default, which stands where a
    file has not the key). `aliases`: other names that transformers takes for these. `read(raw, source)` gives
    those keys of ours that no single key of the file holds, and raises `NeojaxError` for a file whose keys
    disagree; `write(config)` the keys of the file that hold them.
    `tensors`: role of a parameter (its name, within a block where it is of one) -> (tensor, its axes). An
    axis is a dimension, several joined by `*` from the slowest to the fastest, or among these `i/n`, part i
    of n: queries in a tensor of queries, keys and values are "embd 0/3*heads*head_dim" where the three lie
    side by side, and "embd heads*0/3*head_dim" where every head has its own three together.
    Tensors of block N begin with `prefix` and `block` with N in it (where layers share weights, with the
    numbers of the group and of the block within it), others with `prefix`, but for the `output` table, which
    may be called one of `other_outputs` too, and for `heads`: role -> (tensor, axes) as in `tensors`, of what
    a file may have or lack by what it was trained for. `architectures`: class of transformers -> kinds of
    heads, where they are not one. `output_biases`: the two names of the bias of the output table, that which
    counts where the table is the embedding, and where it is not. `prefixes`: kind of a head -> `prefix` of
    the class with it, where that is another (see `of_heads`). `renamed`: (pattern, replacement) for names
    in older files. `written`: the keys of ours that `write` covers. `attention`: the attention types that it
    has. `telltale`: a key of config.json that it alone of all families has, or the first of these, by which a
    file that does not name its family is recognised. `buffers`: names, without prefix, of what transformers
    once saved beside the weights.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, tuple[str, Any]]
    tensors: Mapping[str, tuple[str, str]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[Mapping[str, Any], str], dict[str, Any]] = nothing
    write: Callable[[ModelConfig], dict[str, Any]] = nothing
    attention: tuple[str, ...] = ("global",)
    telltale: str = ""
    prefix: str = "transformer."
    prefixes: Mapping[str, str] = field(default_factory=dict)
    block: str = "h.{}."
    output: str = "lm_head.weight"
    other_outputs: tuple[str, ...] = ()
    output_biases: tuple[str, str] | None = None
    heads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    architectures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()
    written: tuple[str, ...] = ()
    buffers: re.Pattern[str] = re.compile(r"h\.\d+\.attn\.(attention\.)?(bias|masked_bias)")

    def of_heads(self, kinds: tuple[str, ...]) -> "HuggingFace":
        """The same for a model with heads of these kinds, whose class may have a prefix of its own. Tensors
        with the prefix of another class are read as they are with that."""
        if not self.prefixes:
            return self
        own = next((self.prefixes[kind] for kind in kinds if kind in self.prefixes), self.prefix)
        others = {self.prefix, *self.prefixes.values()} - {own}
        renamed = (*self.renamed, *((f"^{re.escape(other)}", own) for other in sorted(others)))
        return replace(self, prefix=own, renamed=renamed)

    def architecture_of(self, kinds: tuple[str, ...]) -> str:
        """The class of transformers for a model with heads of these kinds. Raises `NeojaxError` where there
        is none."""
        if not self.architectures:
            return self.architecture
        for name, own in self.architectures.items():
            if own == kinds:
                return name
        raise NeojaxError(
            f"model.head.kinds={list(kinds)} cannot be exported: transformers' {self.model_type} has no "
            "class with these heads"
        )


@dataclass(frozen=True)
class Family:
    """A family: how its models are built, and its names at Hugging Face, None where transformers has no such
    family."""

    build: Build
    hugging_face: HuggingFace | None = None
