"""What a family of models is."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neojax.config import ModelConfig
from neojax.models.compute import Compute
from neojax.models.embedding import Embedding
from neojax.models.head import LanguageHead
from neojax.models.stack import Stack

Parts = tuple[Embedding, Stack, LanguageHead]
Build = Callable[[ModelConfig, Mapping[str, int], Compute], Parts]
"""(a model's configuration, the sizes of its dimensions, how it computes) -> its three parts."""


def _nothing(*_: Any) -> dict[str, Any]:
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
    Tensors of block N begin with `prefix` and `block` with N in it, others with `prefix`, but for the
    `output` table, which may be called one of `other_outputs` too. `written`: the keys of ours that `write`
    covers. `attention`: the attention types that it has. `telltale`: a key of config.json that it alone of
    all families has, by which a file that does not name its family is recognised. `buffers`: names, without
    prefix, of what transformers once saved beside the weights.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, tuple[str, Any]]
    tensors: Mapping[str, tuple[str, str]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[Mapping[str, Any], str], dict[str, Any]] = _nothing
    write: Callable[[ModelConfig], dict[str, Any]] = _nothing
    attention: tuple[str, ...] = ("global",)
    telltale: str = ""
    prefix: str = "transformer."
    block: str = "h.{}."
    output: str = "lm_head.weight"
    other_outputs: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    buffers: re.Pattern[str] = re.compile(r"h\.\d+\.attn\.(attention\.)?(bias|masked_bias)")


@dataclass(frozen=True)
class Family:
    """A family: how its models are built, and its names at Hugging Face, None where transformers has no such
    family."""

    build: Build
    hugging_face: HuggingFace | None = None
