"""Where the partitions of a compiled program lie: along the axes of the mesh, and on the torus where there is
one."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

NOT_ON_A_TORUS = (0, 0, 0)


class Places:
    """The places of the partitions of a program over `mesh`. A program for several TPU slices numbers the
    partitions of one, and is the same on each.

    dims: chips of a slice along each axis of the torus, 1 each where the devices have no coordinates. names,
    sizes: the axes of the mesh, and how many devices each has within a slice. slices: how many there are.
    """

    def __init__(self, mesh: Mesh):
        devices = [(getattr(d, "slice_index", 0) or 0, d, at) for at, d in np.ndenumerate(mesh.devices)]
        first = min(number for number, _, _ in devices)
        self.slices = len({number for number, _, _ in devices})
        coords = (tuple(getattr(d, "coords", NOT_ON_A_TORUS)) for _, d, _ in devices)
        self.own = [(c, at) for c, (number, _, at) in zip(coords, devices) if number == first]
        self.dims = [1 + max(c[i] for c, _ in self.own) for i in range(3)]
        self.names = mesh.axis_names
        self.sizes = [len({at[i] for _, at in self.own}) for i in range(mesh.devices.ndim)]
        across = [i for i, n in enumerate(self.sizes) if n < mesh.devices.shape[i]]
        self.network = "+".join(self.names[i] for i in across) + " across slices"

    def of(self, group: Sequence[int]) -> list[tuple[int, ...]]:
        """The places on the torus of a group of partitions."""
        return [self.own[n][0] for n in group]

    def axes(self, group: Sequence[int]) -> str:
        """The axes of the mesh that a group of partitions reaches along, and how far where that is not the
        whole."""
        found = []
        for i, name in enumerate(self.names):
            reach = len({self.own[n][1][i] for n in group})
            if reach > 1:
                found.append(name if reach == self.sizes[i] else f"{name} ({reach} of {self.sizes[i]})")
        return "+".join(found) or "none"
