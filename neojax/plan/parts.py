"""What one device has of an array, as the types in a traced program say it."""

import math
from collections.abc import Iterable
from typing import Any

from neojax.plan.fusion import LANES


class Parts:
    """sizes: of the axes of the mesh. tiled: it is a TPU, whose memory has lanes."""

    def __init__(self, sizes: dict[str, int], tiled: bool):
        self.sizes, self.tiled = sizes, tiled

    def parts(self, axes: Iterable[str]) -> int:
        return math.prod(self.sizes[a] for a in axes)

    def spec(self, aval: Any) -> list[tuple[str, ...]]:
        """The axes that split every dimension of an array's type."""
        sharding = getattr(aval, "sharding", None)
        own = tuple(sharding.spec) if sharding is not None else ()
        split = [(a,) if isinstance(a, str) else tuple(a or ()) for a in own]
        return split + [()] * (len(getattr(aval, "shape", ())) - len(split))

    def local(self, aval: Any) -> list[int]:
        """The shape of one device's part."""
        return [n // self.parts(axes) for n, axes in zip(aval.shape, self.spec(aval))]

    def bytes(self, aval: Any) -> int:
        if not hasattr(aval, "shape") or not hasattr(aval.dtype, "itemsize"):
            return 0
        return math.prod(self.local(aval)) * aval.dtype.itemsize

    def pad(self, aval: Any) -> int:
        """What an array of heads takes on a TPU beside its own bytes where a kernel of attention reads or
        makes it: those ask for lanes in full. Elsewhere another dimension lies there."""
        shape = self.local(aval) if self.tiled and len(getattr(aval, "shape", ())) > 2 else [LANES]
        return round(self.bytes(aval) * (LANES / shape[-1] - 1)) if 1 < shape[-1] < LANES else 0
