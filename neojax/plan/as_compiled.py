"""An analysis with the collectives of the compiled step in place of those that the model counts: what
`neojax plan` tells of a step, and `--search` of those that it compiles."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from neojax.plan.compiled import Moved
from neojax.plan.estimate import Analysis, estimate
from neojax.plan.work import Transfer

KINDS = {  # of a row -> the model's, and whether each device keeps a part
    "all-gather": ("gather", False),
    "all-gather as a sum": ("sum", False),
    "all-reduce": ("sum", False),
    "reduce-scatter": ("sum", True),
    "all-to-all": ("all-to-all", False),
    "collective-permute": ("permute", False),
}


def as_compiled(one: Analysis, moved: Sequence[Moved]) -> Analysis:
    """`one`, whose step takes its time from the collectives of the compiled program. The model's constants
    were fitted with the collectives that it counts itself."""
    transfers = tuple(made for row in moved if (made := transfer(row, one.work.sizes)))
    work = replace(one.work, transfers=transfers)
    return replace(one, work=work, estimate=estimate(work, one.config, one.on))


def transfer(row: Moved, sizes: Mapping[str, int]) -> Transfer | None:
    """A row of a compiled step's collectives as the model takes it; None for what it has no time for.

    What the compiler writes within a slice and what it writes between slices are two rows of one sum, so
    that each has the time of its own part of the way alone.
    """
    named = re.sub(r" \(.*?\)| across slices$", "", row.axes)
    axes = tuple(named.split("+"))
    if any(axis not in sizes for axis in axes):
        return None
    kind = row.kind.removesuffix(" between slices")
    if kind not in KINDS and not row.crosses:
        return None
    known, is_cut = KINDS.get(kind, ("gather", False))
    return Transfer(
        known,
        axes,
        row.bytes // max(1, row.runs),
        row.runs,
        row.types,
        cut=axes if is_cut else (),
        alone=not row.beside,
        only="network" if row.crosses else "links",
    )
