"""What chips can do: one table of their peaks, memories, links and networks, with its sources.

Sources: the makers' pages (Google Cloud's of every TPU, NVIDIA's data sheets of V100 to B200); the scaling
book of jax-ml (https://jax-ml.github.io/scaling-book, its chapters tpus, sharding and gpus) for links,
networks and list prices; `jax._src.tpu_info` of jax 0.12. Where they disagree, the maker's figure of peak
FLOP/s stands, and the scaling book's of links, which is the lower: v5p's memory is 2.46e12 to 2.8e12 bytes a
second, v6e's links 90e9 to 112e9.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

from neojax.errors import NeojaxError

GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """One chip, and how it is joined to others.

    kinds: `jax.Device.device_kind` of its devices, of which it has `cores`. flops: peak dense bfloat16 FLOP/s
    (float16 where there is no bfloat16). memory: bytes of HBM; bandwidth: of HBM, bytes a second. link: bytes
    a second one way over one of its links, of which it has two along each of `axes` dimensions of a torus;
    where `axes` is 0, all that it sends through a switch to any of the `domain` chips that the switch joins.
    network: bytes a second that it sends beyond its slice or domain. host: chips of one host. closes: "all4",
    where the axes of a slice are rings if all of them have multiples of 4 chips, or "16", where those of 16
    chips are.
    price: US dollars an hour of one chip, as listed on demand in 2025; None where no consistent figure is
    known.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    link: float
    axes: int
    domain: int
    network: float
    host: int
    closes: str = ""
    cores: int = 1
    price: float | None = None

    @property
    def platform(self) -> str:
        """The platform of its devices, as JAX calls it: tpu or gpu."""
        return "tpu" if self.axes else "gpu"

    @property
    def side(self) -> int:
        """The most chips along one axis of a slice: of a square pod its side, of a pod of cubes all its cubes
        in a row."""
        return math.isqrt(self.domain) if self.axes == 2 else self.domain // 16

    @property
    def reported(self) -> float:
        """Bytes that one of its devices says that it has."""
        return REPORTED.get(self.name, self.memory / self.cores)

    @property
    def room(self) -> float:
        """Bytes that a program may take on one of its devices: on a TPU what its compiler leaves, on a GPU
        the part that JAX takes. Raises `NeojaxError` where the environment's part is none."""
        return self.reported * gpu_fraction() if not self.axes else ROOM[self.name]


CHIPS = {
    chip.name: chip
    for chip in (
    # name, kinds, FLOP/s, memory, bandwidth, link, axes, domain, network, host
    Chip("v2", ("TPU v2",), 45e12, 16 * GIB, 700e9, 62e9, 2, 256, 3.1e9, 4, "16", 2),
    Chip("v3", ("TPU v3",), 123e12, 32 * GIB, 900e9, 83e9, 2, 1024, 3.1e9, 4, "16", 2),
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1.2e12, 45e9, 3, 4096, 6.25e9, 4, "all4"),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 45e9, 2, 256, 3.125e9, 4, "16", 1, 1.2),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2.765e12, 90e9, 3, 8960, 6.25e9, 4, "all4", 1, 4.2),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1.64e12, 90e9, 2, 256, 12.5e9, 4, "16"),
    Chip("7x", ("TPU7x",), 2307e12, 192 * GIB, 7.38e12, 100e9, 3, 9216, 12.5e9, 4, "all4", 2),
    Chip("a100-40", ("NVIDIA A100-SXM4-40GB",), 312e12, 40e9, 1.555e12, 300e9, 0, 8, 25e9, 8),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2.039e12, 300e9, 0, 8, 25e9, 8, price=1.75),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989.4e12, 80e9, 3.35e12, 450e9, 0, 8, 50e9, 8, price=10.8),
    Chip("h200", ("NVIDIA H200",), 989.4e12, 141e9, 4.8e12, 450e9, 0, 8, 50e9, 8, price=10.0),
    Chip("b200", ("NVIDIA B200",), 2250e12, 192e9, 8e12, 900e9, 0, 8, 50e9, 8),
    Chip("gb200", ("NVIDIA GB200",), 2500e12, 192e9, 8e12, 900e9, 0, 72, 50e9, 4),
    )
}  # fmt: skip
"""By the name that a topology gives them, as in v5e:16x16."""

# Bytes that a TPU's compiler leaves a program on one device, as its own errors name them (libtpu 0.0.42).
ROOM = {
    name: left * GIB
    for name, left in (
        ("v2", 7.48), ("v3", 15.48), ("v4", 30.75), ("v5e", 15.75), ("v5p", 95.74), ("v6e", 31.25),
        ("7x", 94.75),
    )
}  # fmt: skip

# Bytes that CUDA reports of a GPU, which is not what its data sheet has. H200: of its 139.8 GiB a job that
# was given 0.92 got 138,101,653,504 bytes (benchmarks/results/h200.json). Others: what PyTorch names where
# memory is out; H100's is 0.5 GiB below the driver's 81,559 MiB, as H200's is.
REPORTED = {"a100-40": 39.5 * GIB, "a100": 79.25 * GIB, "h100": 79.1 * GIB, "h200": 138101653504 / 0.92}

FRACTION = 0.75  # of a GPU's memory that JAX takes where its environment does not say
FRACTIONS = (
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
)  # JAX 0.12's name, and that of before
ALONE = 0.92  # of which a job that has the device to itself can take, beside what CUDA and its libraries need


def gpu_fraction() -> float:
    """The part of a GPU's memory that a run gets: that of the environment (`FRACTIONS`), else JAX's default.
    Raises `NeojaxError` for one that is no number above 0."""
    name, text = next(((n, os.environ[n]) for n in FRACTIONS if os.environ.get(n)), ("", str(FRACTION)))
    try:
        part = float(text)
    except ValueError:
        part = math.nan
    if not 0 < part <= 1:
        raise NeojaxError(f"{name}={text}: expected a part of a GPU's memory, above 0 and at most 1")
    return part


# Peaks of `jax.Device`s of which the table above does not say more.
PEAK_FLOPS = {
    "TPU v4 lite": 137e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla V100-SXM3-32GB": 125e12,
    "Tesla V100-PCIE-16GB": 112e12,
    "Tesla V100-PCIE-32GB": 112e12,
    "Tesla T4": 65e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A100-SXM-64GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 5090": 209.5e12,
    "NVIDIA RTX A6000": 154.8e12,
    "NVIDIA RTX 6000 Ada Generation": 364.2e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200 480GB": 989.4e12,
    "NVIDIA GH200 120GB": 989.4e12,
    # A device of these is a core, half a chip.
    **{kind: chip.flops / chip.cores for chip in CHIPS.values() for kind in chip.kinds},
}


def peak_flops(device: Any) -> float | None:
    """Peak bfloat16 FLOP/s of a `jax.Device`; None for a chip that `PEAK_FLOPS` does not list (a CPU,
    say)."""
    return PEAK_FLOPS.get(device.device_kind)


def chip_of(device: Any) -> Chip | None:
    """The chip that a `jax.Device` is, or is a core of; None for one that `CHIPS` does not list."""
    return next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)
