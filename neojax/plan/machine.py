"""A machine to plan for: chips of one kind, in slices of a torus or in domains of a switch, none of which
need be here."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from neojax.errors import NeojaxError, suggest
from neojax.layout.chips import CHIPS, Chip
from neojax.layout.slice_names import OTHERS, by_number, parse

FORM = "such as v5e:16x16, 2xv5e:8x8 for two slices joined by a network, or h100:64"


@dataclass(frozen=True)
class Machine:
    """`slices` slices of `chip`s, each a torus of `shape` chips; of GPUs, one "slice" of a number of chips,
    in which a switch joins every `domain` of them and a network the others. limit: bytes that a program may
    take on one device, where that is known of the devices themselves."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1
    limit: float | None = None

    @property
    def room(self) -> float:
        """Bytes that a program may take on one device."""
        return self.chip.room if self.limit is None else self.limit

    @property
    def chips(self) -> int:
        """All its chips."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """All its devices, as JAX counts them."""
        return self.chips * self.chip.cores

    @property
    def domain(self) -> int:
        """Devices that are joined by links, without the network."""
        each = math.prod(self.shape)
        return (each if self.chip.axes else min(each, self.chip.domain)) * self.chip.cores

    @property
    def closes(self) -> tuple[bool, ...]:
        """Which axes of a slice close to rings."""
        if self.chip.closes == "all4":
            return (all(n % 4 == 0 for n in self.shape),) * len(self.shape)
        return tuple(n >= 16 for n in self.shape)

    def __str__(self) -> str:
        several = f"{self.slices}x" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"


def machine(text: str) -> Machine:
    """The machine that `text` names. Raises `NeojaxError` where there is none such."""
    gpus = {name: chip for name, chip in CHIPS.items() if not chip.axes}
    parts = re.fullmatch(r"(?:([1-9]\d*)x(?=[a-z0-9-]+:))?([a-z0-9-]+):([1-9]\d*(?:x[1-9]\d*)*)", text)
    counted = re.fullmatch(r"([a-z0-9-]+)-([1-9]\d*)", text)
    if counted and counted[1] in gpus and text not in gpus:
        raise NeojaxError(f"topology {text!r}: write {counted[1]}:{counted[2]}")
    if not parts and not by_number(text):
        raise NeojaxError(f"topology {text!r}: expected a chip and a shape, {FORM}")
    if parts and parts[2] not in CHIPS and parts[2] not in OTHERS:
        raise NeojaxError(f"topology {text!r}: no chip is called {parts[2]}{suggest(parts[2], list(CHIPS))}")
    if not parts or parts[2] not in gpus:
        several, chip, shape = parse(text)
        return Machine(chip, shape, several)
    own = tuple(int(n) for n in parts[3].split("x"))
    if len(own) > 1 or parts[1]:
        total = math.prod(own) * int(parts[1] or 1)
        raise NeojaxError(
            f"topology {text!r}: GPUs are given by their number alone; write {parts[2]}:{total}"
        )
    return Machine(gpus[parts[2]], own)


@dataclass(frozen=True)
class Path:
    """How the devices of a group reach each other: `devices` of them along `rings` axes of the torus at once,
    which close or not, one in every `stride`; `outer` parts of the group are joined by the network alone."""

    devices: int
    rings: int
    closes: bool
    stride: int
    outer: int


def paths(on: Machine, sizes: dict[str, int], dcn: dict[str, int]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """For every axis of a mesh of `sizes`, what it takes of the machine: pairs (dimension of the torus, size,
    stride), the network being dimension -1.

    An axis takes whole dimensions of the torus where their product is its size, as JAX lays a mesh; else a
    part of one. On GPUs the last axes vary fastest and lie within a switch.
    """
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    if not on.chip.axes:
        inside = on.domain
        for axis in reversed(sizes):
            near = math.gcd(sizes[axis], inside)
            inside //= near
            far = sizes[axis] // near
            found[axis] = tuple(part for part in ((0, near, 1), (-1, far, 1)) if part[1] > 1)
        return found
    left = [n * (on.chip.cores if i == 0 else 1) for i, n in enumerate(on.shape)]
    taken = [1] * len(left)
    for axis in reversed(sizes):
        outer = dcn.get(axis, 1)
        parts = [(-1, outer, 1)] if outer > 1 else []
        want = sizes[axis] // outer
        whole = _product_of([(i, n) for i, n in enumerate(left) if n > 1], want)
        if whole is not None:
            for i in whole:
                parts.append((i, left[i], taken[i]))
                left[i] = 1
        else:
            for i in sorted(range(len(left)), key=lambda i: -left[i]):
                part = math.gcd(want, left[i])
                if part > 1:
                    parts.append((i, part, taken[i]))
                    left[i] //= part
                    taken[i] *= part
                    want //= part
        found[axis] = tuple(parts)
    return found


def _product_of(dims: Sequence[tuple[int, int]], want: int) -> tuple[int, ...] | None:
    """The fewest of `dims` (number, size) whose sizes multiply to `want`."""
    best: tuple[int, ...] | None = None
    for chosen in range(2 ** len(dims)):
        some = [dims[i] for i in range(len(dims)) if chosen >> i & 1]
        fits = math.prod(n for _, n in some) == want
        if fits and (best is None or len(some) < len(best)):
            best = tuple(i for i, _ in some)
    return best


def path(on: Machine, parts: Sequence[tuple[int, ...]]) -> Path:
    """The path along an axis, or several, of a mesh, from their parts in `paths`."""
    inner = [part for part in parts if part[0] >= 0]
    whole: dict[int, tuple[int, int]] = {}
    for dim, size, stride in inner:
        n, s = whole.get(dim, (1, stride))
        whole[dim] = n * size, min(s, stride)
    sizes = [n * (on.chip.cores if i == 0 else 1) for i, n in enumerate(on.shape)]
    closes = (
        all(on.closes[dim] and n == sizes[dim] for dim, (n, _) in whole.items()) if on.chip.axes else True
    )
    return Path(
        devices=math.prod(n for n, _ in whole.values()),
        rings=max(1, len(whole)),
        closes=closes,
        stride=max((s for _, s in whole.values()), default=1),
        outer=math.prod(size for dim, size, _ in parts if dim < 0),
    )
