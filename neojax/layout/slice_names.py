"""TPU slices by their names, such as v5e:16x16: which there are, and which are near to one that there is
not."""

import itertools
import math
import re
from collections.abc import Sequence

from neojax.errors import NeojaxError, suggest
from neojax.layout.chips import CHIPS, Chip

FORM = "a chip and a shape, such as v5e:4x4, v5p:2x2x4 or v6e:16x16, or several such slices, as 2xv5e:8x8"
SMALL = {2: ((2, 2), (2, 4)), 3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))}
ALONE = ("v5e", "v6e")  # of which there are machines with one chip
OTHERS = {"v5litepod": "v5e", "tpu7x": "7x"}  # what others call a chip
BY_CORES = ("v2", "v3", "v4", "v5p", "7x")  # of which v5p-128 has 128 cores, two to a chip


def parse(topology: str) -> tuple[int, Chip, tuple[int, ...]]:
    """(slices, chip, shape) of a topology. Raises `NeojaxError` where there cannot be such a one."""
    found = re.fullmatch(r"(?:([1-9]\d*)x(?=[a-z]))?([a-z0-9-]+):([1-9]\d*(?:x[1-9]\d*)*)", topology)
    if not found:
        raise NeojaxError(by_number(topology) or f"TPU topology {topology!r}: expected {FORM}")
    tpus = {name: chip for name, chip in CHIPS.items() if chip.axes}
    if found[2] not in tpus:
        other = f"; did you mean {OTHERS[found[2]]}?" if found[2] in OTHERS else suggest(found[2], tpus)
        raise NeojaxError(f"TPU topology {topology!r}: there is no TPU {found[2]}{other}; expected {FORM}")
    several, chip = int(found[1] or 1), tpus[found[2]]
    shape = tuple(int(n) for n in found[3].split("x"))
    if len(shape) == chip.axes - 1:  # 2x2 of a chip with three axes is 2x2x1
        shape = (*shape, 1)
    cause = ""
    if len(shape) != chip.axes:
        cause = f"a slice of {chip.name} is a torus of {chip.axes} axes"
    elif math.prod(shape) > chip.domain:
        cause = f"a slice of {chip.name} has at most {chip.domain} chips"
    elif max(shape) > chip.side:
        cause = f"a slice of {chip.name} has at most {chip.side} chips along an axis"
    elif not _routed(chip, shape):
        cause = f"the compiler knows no way between the chips of such a slice of {chip.name}"
    if cause:
        raise NeojaxError(f"TPU topology {topology!r}: {cause}; try {near(several, chip, shape)}")
    return several, chip, shape


def larger(topology: str) -> str | None:
    """The usual topology of the same slices with twice the chips, or the next above; None where there is
    none. Raises `NeojaxError` where there is no such topology."""
    several, chip, shape = parse(topology)
    enough = [one for one in _usual(chip) if math.prod(one) >= 2 * math.prod(shape)]
    return _name(several, chip, min(enough, key=math.prod)) if enough else None


def near(several: int, chip: Chip, shape: Sequence[int]) -> str:
    """The slices of a chip, of those that are usual, which are most like `shape`: those with its number of
    chips, else the two nearest; several slices where one cannot have as many."""
    count, usual = math.prod(shape), _usual(chip)
    if count > chip.domain:
        return _name(several * -(-count // chip.domain), chip, max(usual, key=math.prod))
    wanted = sorted(shape)

    def unlike(one: Sequence[int]) -> tuple[float, float]:
        return abs(math.log2(math.prod(one) / count)), sum(abs(a - b) for a, b in zip(sorted(one), wanted))

    exact = [one for one in usual if math.prod(one) == count]
    return " or ".join(_name(several, chip, one) for one in sorted(exact or usual, key=unlike)[:2])


def by_number(topology: str) -> str:
    """What is said of a slice that is named by its number of chips or cores, as Google's types of
    accelerators are; empty where it is none such."""
    found = re.fullmatch(r"(?:([1-9]\d*)x(?=[a-z]))?([a-z0-9]+)-([1-9]\d*)", topology)
    name = OTHERS.get(found[2], found[2]) if found else ""
    if not found or name not in CHIPS or not CHIPS[name].axes:
        return ""
    number, chip = int(found[3]), CHIPS[name]
    chips = max(1, number // 2) if name in BY_CORES else number
    counted = f"{number} cores are {chips} chips" if name in BY_CORES else f"{chips} chips"
    return (
        f"TPU topology {topology!r}: {counted}, of which the shape is wanted too; try "
        f"{near(int(found[1] or 1), chip, (chips,))}"
    )


def _routed(chip: Chip, shape: Sequence[int]) -> bool:
    """Whether libtpu (0.0.42) compiles for a slice: of v5e its tables of routes end at 8 chips along an axis,
    but where there are 4, 8 or 16 along the first."""
    return chip.name != "v5e" or shape[0] in (4, 8, 16) or max(shape) <= 8


def _usual(chip: Chip) -> list[tuple[int, ...]]:
    """The shapes of the slices that are usual of a chip."""
    side = round(chip.domain ** (1 / chip.axes))
    large = [n for n in (4, 8, 16, 32) if n <= side]
    square = itertools.combinations_with_replacement(large, chip.axes)
    alone = [(1,) * chip.axes] if chip.name in ALONE else []
    return [*alone, *SMALL[chip.axes], *(sizes for sizes in square if sizes[-1] <= 2 * sizes[0])]


def _name(several: int, chip: Chip, shape: Sequence[int]) -> str:
    return f"{several}x" * (several > 1) + f"{chip.name}:{'x'.join(map(str, shape))}"
