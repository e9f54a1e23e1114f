"""The chips of a TPU slice that is not here, to compile for and never to run on. Needs libtpu, `pip install
.[tpu]`."""

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from neojax.errors import NeojaxError, suggest
from neojax.layout.chips import CHIPS, Chip

# What libtpu otherwise asks the network for as it starts, and says on stderr.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


NAMES = {"7x": "tpu7x"}  # as libtpu has them, where it has another
FORM = "a chip and a shape, such as v5e:4x4, v5p:2x2x4 or v6e:16x16, or several such slices, as 2xv5e:8x8"
SMALL = {2: ((2, 2), (2, 4)), 3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))}


def tpu_devices(topology: str) -> list[jax.Device]:
    """The devices of `topology`, such as "v5e:16x16" or "v5p:4x4x4", in JAX's order; "2xv5e:8x8" is two
    slices of v5e:8x8, which a network joins.

    JAX itself is to run on something else (JAX_PLATFORMS=cpu). Raises `NeojaxError` without libtpu, or where
    there is no such topology.
    """
    several, chip, shape = _parts(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise NeojaxError(
            "compiling for a TPU needs libtpu; install neojax with its extra: pip install '.[tpu]'"
        )
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    wanted: dict[str, str | int] = {"num_slices": several} if several > 1 else {}
    if chip.name == "v4":
        wanted["chip_config_name"] = "megacore"
    one = f"{NAMES.get(chip.name, chip.name)}:{_text(shape)}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=one, **wanted)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as e:
        cause = " ".join(str(e).removeprefix("INVALID_ARGUMENT: ").split())[:200]
        raise NeojaxError(f"TPU topology {topology!r}: {cause}; try {_near(several, chip, shape)}") from None
    return list(found.devices)


def _parts(topology: str) -> tuple[int, Chip, tuple[int, ...]]:
    """(slices, chip, shape) of a topology. Raises `NeojaxError` where there cannot be such a one."""
    found = re.fullmatch(r"(?:([1-9]\d*)x(?=[a-z]))?([a-z0-9-]+):([1-9]\d*(?:x[1-9]\d*)*)", topology)
    if not found:
        raise NeojaxError(f"TPU topology {topology!r}: expected {FORM}")
    tpus = {name: chip for name, chip in CHIPS.items() if chip.axes}
    if found[2] not in tpus:
        raise NeojaxError(
            f"TPU topology {topology!r}: there is no TPU {found[2]}{suggest(found[2], tpus)}; expected {FORM}"
        )
    several, chip = int(found[1] or 1), tpus[found[2]]
    shape = tuple(int(n) for n in found[3].split("x"))
    flat = len(shape) == chip.axes - 1  # 2x2 of a chip with three axes is 2x2x1
    if flat:
        shape = (*shape, 1)
    cause = ""
    if len(shape) != chip.axes:
        cause = f"a slice of {chip.name} is a torus of {chip.axes} axes"
    elif math.prod(shape) > chip.domain:
        cause = f"a slice of {chip.name} has at most {chip.domain} chips"
    if cause:
        raise NeojaxError(f"TPU topology {topology!r}: {cause}; try {_near(several, chip, shape)}")
    return several, chip, shape


def larger(topology: str) -> str | None:
    """The usual topology of the same slices with twice the chips, or the next above; None where there is
    none. Raises `NeojaxError` where there is no such topology."""
    several, chip, shape = _parts(topology)
    enough = [one for one in _usual(chip) if math.prod(one) >= 2 * math.prod(shape)]
    each = f"{several}x" if several > 1 else ""
    return f"{each}{chip.name}:{_text(min(enough, key=math.prod))}" if enough else None


def _usual(chip: Chip) -> list[tuple[int, ...]]:
    """The shapes of the slices that are usual of a chip."""
    side = round(chip.domain ** (1 / chip.axes))
    large = [n for n in (4, 8, 16, 32) if n <= side]
    square = itertools.combinations_with_replacement(large, chip.axes)
    return [*SMALL[chip.axes], *(sizes for sizes in square if sizes[-1] <= 2 * sizes[0])]


def _near(several: int, chip: Chip, shape: Sequence[int]) -> str:
    """The slices of a chip, of those that are usual, which are most like `shape`."""
    wanted = sorted(shape)

    def unlike(one: Sequence[int]) -> tuple[float, float]:
        apart = abs(math.log2(math.prod(one) / math.prod(shape)))
        return apart, sum(abs(a - b) for a, b in zip(sorted(one), wanted))

    each = f"{several}x" if several > 1 else ""
    return " or ".join(f"{each}{chip.name}:{_text(one)}" for one in sorted(_usual(chip), key=unlike)[:2])


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
