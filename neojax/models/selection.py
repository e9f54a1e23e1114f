"""Which parameters a key of the configuration means: by dimension, by name, or those below two dimensions."""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from neojax.config import LoraConfig, TrainConfig
from neojax.errors import NeojaxError, suggest

VECTORS = "ndim<2"
TASK_HEADS = ("classifier", "score", "span")
"""The parts of a model, by the first word of their parameters' names, that a task has for itself."""

Dims = Mapping[str, tuple[str, ...]]


def selected(
    entries: Collection[str],
    dims: Dims,
    key: str,
    may_miss: Collection[str] = (),
    what: str = "parameter",
) -> frozenset[str]:
    """The names of the parameters, of those whose dimension names are `dims`, that any of `entries` matches.

    An entry is "ndim<2" (below two dimensions, where the stacked `layers` do not count, and `heads` and
    `head_dim`, which split one, count as one: a bias of queries is a vector), the name of a dimension, or a
    shell-style pattern of parameter names, whole or as they are within a block. Raises `NeojaxError`, which
    names `key` and `what` it chooses from, for an entry that matches nothing and is not one of `may_miss`.
    """
    names: set[str] = set()
    for entry in entries:
        matched = {name for name, own in dims.items() if _matches(entry, name, own)}
        if not matched and entry not in may_miss:
            known = sorted({d for ds in dims.values() for d in ds} | {VECTORS} | set(dims) | roles(dims))
            raise NeojaxError(f"{key}: {entry!r} matches no {what}{suggest(entry, known)}")
        names |= matched
    return frozenset(names)


def frozen_names(frozen: Collection[str], dims: Dims) -> frozenset[str]:
    """The parameters that `train.frozen` leaves as they are. Raises `NeojaxError` where that is all of
    them."""
    names = selected(frozen, dims, "train.frozen")
    if names and names == dims.keys():
        raise NeojaxError(
            f"train.frozen: {', '.join(frozen)} match all {len(dims)} parameters, and nothing is left to "
            "train; leave some out"
        )
    return names


def untrained(lora: LoraConfig, dims: Dims) -> frozenset[str]:
    """The parameters that training by additions leaves as they are: all but the additions, what
    `train.lora.whole` names, and a head of a task, which mostly begins at random. Raises `NeojaxError` for an
    entry that matches none."""
    own = {name: its for name, its in dims.items() if not is_adapter(name)}
    heads = {name for name in own if name.partition(".")[0] in TASK_HEADS}
    return frozenset(own) - selected(lora.whole, own, "train.lora.whole") - heads


def not_trained(train: TrainConfig, dims: Dims) -> frozenset[str]:
    """The parameters that a run leaves as they are, of a model whose parameters, those of low-rank additions
    too, have the dimension names `dims`. Raises `NeojaxError` as `frozen_names` and `untrained` do."""
    return untrained(train.lora, dims) if train.lora.rank else frozen_names(train.frozen, dims)


def is_adapter(name: str) -> bool:
    """Whether a parameter is part of a low-rank addition."""
    return name.endswith((".lora_a", ".lora_b"))


def role_of(name: str) -> str:
    """The name of a parameter within its block; that of one which is in none as it is."""
    return re.sub(r"^blocks\.\d+\.", "", name)


def roles(dims: Dims) -> set[str]:
    """The names of parameters within their blocks."""
    return {role_of(name) for name in dims}


def _matches(entry: str, name: str, dims: tuple[str, ...]) -> bool:
    if entry == VECTORS:
        return sum(d not in ("layers", "head_dim") for d in dims) < 2
    return entry in dims or fnmatchcase(name, entry) or fnmatchcase(role_of(name), entry)
