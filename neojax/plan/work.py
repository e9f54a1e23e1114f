"""What one device does and holds in a training step, in numbers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """A product of matrices [m, k] and [k, n] on one device, `batch` of them at once, `times` a step. kernel:
    it is inside a kernel of attention. bytes: what it reads and writes."""

    batch: int
    m: int
    n: int
    k: int
    times: int
    bytes: int
    kernel: str = ""
    flops: float = 0.0


@dataclass(frozen=True)
class Transfer:
    """A collective, `times` a step: a gather, sum, all-to-all or permute over `axes` of the mesh. bytes: of
    the whole array, as a group has it after a gather or before a sum. cut: axes along which each device then
    keeps a part of a sum; turned: which is reshaped before. looped: it is in a loop. alone: nothing runs
    beside it, None where that is not known. only: the part of the way that it takes, where it is not the
    whole: "links", within slices, or "network", between them; bytes of that one are of what one device of
    each slice has."""

    kind: str
    axes: tuple[str, ...]
    bytes: int
    times: int
    dtype: str
    looped: bool = False
    cut: tuple[str, ...] = ()
    alone: bool | None = None
    only: str = ""
    turned: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on one device; checkpoint: of the parameters and the optimizer's state as a whole. arguments:
    parameters, optimizer state and a batch; temporaries: all else at the fullest, of which `kept` are
    activations kept for the backward pass and `gradients` gradients."""

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    kept: int
    temporaries: int
    checkpoint: int

    @property
    def arguments(self) -> int:
        return self.parameters + self.optimizer + self.batch

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


@dataclass(frozen=True)
class Held:
    """An array that one device has in memory: its own part of it. what: of an argument the path of its leaf,
    such as state.trained['wte']; else the operation that made it, `kept` where a loop keeps it for its way
    back."""

    bytes: int
    shape: tuple[int, ...]
    dtype: str
    what: str


@dataclass(frozen=True)
class Work:
    """All that one device does in a step. traffic: bytes to and from its memory, those of products apart;
    operations: kernels that it starts, fused ones counted once. sizes: of the mesh's axes. arguments: the
    arrays of the state and the batch; held: what is in memory beside them when it is fullest."""

    products: tuple[Product, ...]
    transfers: tuple[Transfer, ...]
    traffic: float
    operations: int
    memory: Memory
    sizes: Mapping[str, int]
    arguments: tuple[Held, ...] = ()
    held: tuple[Held, ...] = ()

    @property
    def flops(self) -> float:
        """FLOPs of all products, recomputed ones too."""
        return sum(p.flops * p.times for p in self.products)
