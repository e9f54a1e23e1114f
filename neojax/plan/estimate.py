"""How long a training step takes, by a roofline: products, memory's traffic and collectives over what the
chips can do, times a few constants that published steps gave.

    step = max(products + kernels + traffic, links) + links that nothing hides + network

`CONSTANTS` are fitted by `benchmarks/published_steps.py` to half of some ninety steps, published ones and our
own, on A100 to TPU 7x and from 124 million parameters to a trillion, and tested on the other half: half of
those are met within 4 %, all within 25 %. Their programs hide whatever their links carry, so that no more
than the longer of the two is seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from neojax.config import Config
from neojax.models import Transformer
from neojax.models.flops import flops_per_token
from neojax.plan.count import count
from neojax.plan.machine import Machine, machine, path, paths
from neojax.plan.trace import dcn_of, trace
from neojax.plan.walk import AGAIN
from neojax.plan.work import Transfer, Work

HOP = 1e-6  # seconds that a message takes to the next chip, at least


@dataclass(frozen=True)
class Constant:
    """A number that the model takes from measurements; low, high: where nine in ten fits to other choices of
    the same steps put it, None where it is not fitted to steps."""

    value: float
    low: float | None
    high: float | None
    meaning: str


CONSTANTS = {
    "products v4": Constant(0.733, 0.701, 0.787, "share of peak FLOP/s that products of matrices reach"),
    "products v5e": Constant(0.814, 0.749, 0.911, "as above"),
    "products v5p": Constant(0.852, 0.797, 0.904, "as above"),
    "products v6e": Constant(0.579, 0.546, 0.74, "as above"),
    "products 7x": Constant(0.701, 0.672, 0.793, "as above"),
    "products a100": Constant(0.709, 0.661, 0.765, "as above"),
    "products h100": Constant(0.559, 0.473, 0.693, "as above"),
    "products h200": Constant(0.705, 0.631, 0.814, "as above, of one step on one device"),
    "kernels tpu": Constant(0.675, 0.304, 1, "as above, of kernels of attention"),
    "kernels gpu": Constant(0.350, None, None, "as above; not fitted"),
    "traffic": Constant(0.671, 0.243, 1.16, "of what is counted as traffic of memory, the part that is seen"),
    "network tpu": Constant(2.763, 1.28, 3.97, "seconds over those of the network's nominal bandwidth"),
    "network gpu": Constant(1.122, 0.00674, 3.41, "as above"),
}
LIKE = {"v2": "v4", "v3": "v4", "a100-40": "a100", "b200": "h100", "gb200": "h100"}
"""Chips of which no whole published step is known, or that compute as another does."""
SPREAD = {"tpu": (0.97, 1.14), "gpu": (0.94, 1.14)}
"""A step over its estimate: eight in ten of the tested steps lie between; on GPUs, of theirs alone."""
ONE = "h200"
"""The chip of which one step alone is fitted, on one device: others are as uncertain as where none is."""


def likened(chip: str) -> str:
    """The chip whose share of the peak is taken for a chip of this name."""
    return LIKE.get(chip, chip if f"products {chip}" in CONSTANTS else "h100")


def used(one: "Analysis") -> dict[str, Constant]:
    """The constants that an estimate, and the memory beside it, have been made with, by name."""
    chip, time = one.on.chip, one.estimate
    names = [f"products {likened(chip.name)}"]
    names += [f"kernels {chip.platform}"] if time.kernels else []
    names += ["traffic"] if time.traffic else []
    names += [f"network {chip.platform}"] if time.network else []
    found = {name: CONSTANTS[name] for name in names}
    if time.links:
        found["hop"] = Constant(HOP, None, None, "seconds that a message takes to the next chip, at least")
    if one.config.train.remat != "none":
        told = "memory of a loop that computes something again, over what is counted"
        found["memory again"] = Constant(AGAIN, None, None, told)
    return found


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step on a machine, and what follows. products, kernels, traffic, links, alone, network: of
    its parts; alone: of links, what nothing hides. low, high: where the whole is to be expected. mfu: by
    model FLOPs, of the chips' peak."""

    products: float
    kernels: float
    traffic: float
    links: float
    alone: float
    network: float
    low: float
    high: float
    tokens_per_second: float
    mfu: float
    chips: int
    known: bool

    @property
    def compute(self) -> float:
        """Seconds in which a chip computes."""
        return self.products + self.kernels + self.traffic

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return max(self.compute, self.links - self.alone) + self.alone + self.network

    @property
    def bound(self) -> str:
        """What takes most of the step."""
        parts = {
            "products": self.products + self.kernels,
            "memory": self.traffic,
            "links": self.alone + max(0.0, self.links - self.alone - self.compute),
            "network": self.network,
        }
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class Analysis:
    """What a step does and holds, counted, and how long it is to take. fits: in the memory of the chips."""

    config: Config
    on: Machine
    model: Transformer
    work: Work
    estimate: Estimate

    @property
    def room(self) -> float:
        """Bytes that a step may take on one device."""
        return self.on.room

    @property
    def fits(self) -> bool:
        return self.work.memory.total <= self.room


def analyse(config: Config, topology: str | Machine) -> Analysis:
    """The training step of `config` on a machine that need not be here, by the model alone: nothing is
    compiled.

    topology: such as "v5e:16x16", "2xv5e:8x8" or "h100:64". Raises `NeojaxError` where there is no such
    machine or the layout does not fit it.
    """
    on = machine(topology) if isinstance(topology, str) else topology
    traced = trace(config, on)
    work = count(traced, tiled=bool(on.chip.axes))
    return Analysis(config, on, traced.model, work, estimate(work, config, on))


def estimate(work: Work, config: Config, on: Machine, *, hidden: bool | None = None) -> Estimate:
    """The time of a step that does `work`.

    hidden: whether sums run beside computation, as published programs have it (default: on GPUs; the compiler
    of TPUs runs those of our steps alone).
    """
    chip = on.chip
    like = likened(chip.name)
    kind = chip.platform
    peak, bandwidth = chip.flops / chip.cores, chip.bandwidth / chip.cores
    reached = CONSTANTS[f"products {like}"].value
    products = sum(
        p.times * max(p.flops / peak / reached, p.bytes / bandwidth) for p in work.products if not p.kernel
    )
    kernels = sum(p.times * p.flops for p in work.products if p.kernel) / peak
    kernels /= CONSTANTS[f"kernels {kind}"].value
    traffic = CONSTANTS["traffic"].value * work.traffic / bandwidth
    taken = paths(on, dict(work.sizes), dcn_of(config))
    links = alone = network = 0.0
    for one in work.transfers:
        near, far = seconds(one, on, taken)
        links += near
        alone += near if is_alone(one, on, hidden) else 0.0
        network += far
    network *= CONSTANTS[f"network {kind}"].value
    made = Estimate(
        products, kernels, traffic, links, alone, network, 0, 0, 0, 0, on.chips, like == chip.name != ONE
    )
    step = made.seconds
    tokens = config.train.batch_size * config.model.n_ctx
    flops = flops_per_token(config.model) * tokens
    wide = 1.0 if made.known else 2.0
    return replace(
        made,
        low=step * (1 - wide * (1 - SPREAD[kind][0])),
        high=step * (1 + wide * (SPREAD[kind][1] - 1)),
        tokens_per_second=tokens / step,
        mfu=flops / (step * on.chips * chip.flops),
    )


def is_alone(one: Transfer, on: Machine, hidden: bool | None = None) -> bool:
    """Whether nothing runs beside a collective. hidden: as in `estimate`."""
    if one.alone is not None:
        return one.alone
    return one.kind == "sum" and not (not on.chip.axes if hidden is None else hidden)


def seconds(
    one: Transfer, on: Machine, taken: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[float, float]:
    """Seconds of a step that a collective takes over links, and over the network, at their nominal
    bandwidths.

    A gather brings every device what it lacks: (N-1)/N of the whole, in a ring of N both ways at once where
    it closes. A sum is a scatter and a gather, and a scatter alone where each keeps a part. All-to-all takes
    a quarter of a gather on a ring, half on an axis that does not close, and one N-th behind a switch. Over a
    network too, the parts that devices of a slice have of the sum travel between them.
    """
    way = path(on, [part for axis in one.axes for part in taken[axis]])
    chip = on.chip
    inner = 1 if one.only == "network" else way.devices
    outer = 1 if one.only == "links" else way.outer
    is_cut = set(one.cut) >= set(one.axes)
    near = far = 0.0
    if inner > 1:
        rings = way.rings if one.kind == "sum" and not is_cut else 1
        rate = chip.link * (2 if way.closes else 1) * rings / way.stride if chip.axes else chip.link
        near = one.bytes * (inner - 1) / inner / rate + HOP * math.log2(inner)
        if one.kind == "all-to-all":
            near /= (4 if way.closes else 2) if chip.axes else inner
        elif one.kind == "sum" and not (is_cut and outer == 1):
            near *= 2
    if outer > 1:
        far = one.bytes / inner * (outer - 1) / outer / (chip.network / chip.cores)
        if one.kind == "sum" and not is_cut:
            far *= 2
    return near * one.times, far * one.times


def duration(seconds: float) -> str:
    """Seconds with a unit in which they are readable."""
    return f"{seconds:.3g} s" if seconds >= 1 or seconds == 0 else f"{1e3 * seconds:.3g} ms"
