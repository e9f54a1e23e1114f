"""Which parameters a key of the configuration means: by dimension, by name, or those below two dimensions."""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from neojax.errors import NeojaxError, suggest

VECTORS = "ndim<2"

Dims = Mapping[str, tuple[str, ...]]


def selected(
    entries: Collection[str], dims: Dims, key: str, may_miss: Collection[str] = ()
) -> frozenset[str]:
    """The names of the parameters, of those whose dimension names are `dims`, that any of `entries` matches.

    An entry is "ndim<2" (below two dimensions, where the stacked `layers` do not count, and `heads` and
    `head_dim`, which split one, count as one: a bias of queries is a vector), the name of a dimension, or a
    shell-style pattern of parameter names. Raises `NeojaxError`, which names `key`, for an entry that matches
    nothing and is not one of `may_miss`.
    """
    names: set[str] = set()
    for entry in entries:
        matched = {name for name, own in dims.items() if _matches(entry, name, own)}
        if not matched and entry not in may_miss:
            known = sorted({d for ds in dims.values() for d in ds} | {VECTORS} | set(dims))
            raise NeojaxError(f"{key}: {entry!r} matches no parameter{suggest(entry, known)}")
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


def _matches(entry: str, name: str, dims: tuple[str, ...]) -> bool:
    if entry == VECTORS:
        return sum(d not in ("layers", "head_dim") for d in dims) < 2
    return entry in dims or fnmatchcase(name, entry)
