"""The device mesh and the layout: which named dimensions are split over which mesh axes.

Both maps are written in Mesh-TensorFlow's grammar, ``"name:value, name:value"`` (separators: space , . ;):
``mesh.shape`` gives axes their sizes, ``mesh.layout`` gives dimensions their axes, ``a+b`` meaning both.
The resolver is strict: what cannot be laid out as written is an error, and nothing is silently replicated.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from neojax.config import MeshConfig
from neojax.errors import NeojaxError
from neojax.layout.devices import arranged, available, shape_text, use_cpu_devices
from neojax.layout.names import parse_layout, parse_shape
from neojax.layout.processes import join

OF_PRODUCTS = ("heads", "kv_heads", "mlp", "expert_mlp", "vocab")
"""The dimensions to which `sequence` leaves an axis that splits both, in what has both."""


@dataclass(frozen=True)
class Layout:
    """A device mesh with the two maps from dimension names to its axes.

    `used` says where computation lives, `stored` where parameters, gradients and optimizer state are kept.

    An axis may split `sequence` and dimensions of `OF_PRODUCTS`: what has one of these has whole rows along
    it, and the residual stream, outside the products, a part of each: Megatron's sequence parallelism,
    https://arxiv.org/abs/2205.05198.
    """

    mesh: Mesh | AbstractMesh
    used: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.mesh, frozenset(self.used.items()), frozenset(self.stored.items())))

    @property
    def device(self) -> jax.Device:
        """One of the mesh's devices, which are all alike; of this machine's where the mesh has none of its
        own."""
        return self.mesh.devices.flat[0] if isinstance(self.mesh, Mesh) else jax.devices()[0]

    @property
    def platform(self) -> str:
        """The devices' platform: cpu, gpu or tpu."""
        return self.device.platform

    def axes(self, dim: str, *, stored: bool = False, beside: Iterable[str] = ()) -> tuple[str, ...]:
        """The mesh axes that split `dim`, none if it is whole on every device; where dimensions stand
        `beside` it, of `sequence` those that it does not leave to them."""
        axes = tuple((self.stored if stored else self.used).get(dim, ()))
        if dim == "sequence" and not stored:
            left = {axis for other in beside if other in OF_PRODUCTS for axis in self.axes(other)}
            axes = tuple(axis for axis in axes if axis not in left)
        return axes

    def split(self, dim: str, *, stored: bool = False) -> int:
        """The number of parts that `dim` is split into."""
        return self.split_over(self.axes(dim, stored=stored))

    @property
    def row_multiple(self) -> int:
        """What the length of rows is a multiple of, so that their parts are of one length."""
        return math.lcm(self.split("sequence"), self.split("memory_length"))

    def split_over(self, axes: Sequence[str]) -> int:
        """The number of parts that `axes` split a dimension into."""
        return math.prod(self.mesh.shape[a] for a in axes)

    def spec(
        self,
        dims: Sequence[str],
        shape: Sequence[int] | None = None,
        *,
        stored: bool = False,
        what: str = "a tensor",
        beside: Iterable[str] = (),
    ) -> PartitionSpec:
        """The `PartitionSpec` of a tensor with dimensions `dims`, which goes with others that have those
        `beside` it.

        Raises `NeojaxError` where two of its dimensions share an axis or an axis does not divide its size.
        """
        key = "mesh.param_layout" if stored else "mesh.layout"
        owner: dict[str, str] = {}
        every = {dim: self.axes(dim, stored=stored, beside=(*dims, *beside)) for dim in dims}
        for dim, axes in every.items():
            for axis in axes:
                if axis in owner:
                    raise NeojaxError(
                        f"{what} [{' '.join(dims)}]: {key} splits both {owner[axis]} and {dim} over axis "
                        f"{axis}; an axis can split one dimension of a tensor: lay {dim} or {owner[axis]} "
                        "over another axis"
                    )
                owner[axis] = dim
        for dim, size in zip(dims, shape or ()):
            parts = self.split_over(every[dim])
            if size % parts:
                over = "+".join(every[dim])
                raise NeojaxError(
                    f"{what} [{' '.join(dims)}]: {key} splits {dim} over {over} ({parts} parts), which does "
                    f"not divide its size {size}; use a size or a mesh that divides, or leave {dim} out"
                )
        per_dim = [every[dim] for dim in dims]
        return PartitionSpec(*(axes[0] if len(axes) == 1 else axes or None for axes in per_dim))

    def sharding(
        self,
        dims: Sequence[str],
        shape: Sequence[int] | None = None,
        *,
        stored: bool = False,
        what: str = "a tensor",
        beside: Iterable[str] = (),
    ) -> NamedSharding:
        """As `spec`, with the mesh."""
        return NamedSharding(self.mesh, self.spec(dims, shape, stored=stored, what=what, beside=beside))

    def without(self, *dims: str) -> "Layout":
        """The same layout with `dims` left whole where computation lives."""
        return replace(self, used={d: axes for d, axes in self.used.items() if d not in dims})

    def following(self, dim: str, leader: str, size: int) -> "Layout":
        """The same layout with `dim`, of that `size`, split as `leader` is: over as many of its axes, from
        the first on, as divide it. Where the layout says it of `dim` itself, so it is; raises `NeojaxError`
        for axes that computation cannot use so."""
        used, stored = dict(self.used), dict(self.stored)
        given, wanted = used.get(dim), self.axes(leader)
        if given is not None and given != wanted[: len(given)]:
            raise NeojaxError(
                f"mesh.layout splits {dim} over {'+'.join(given)} but {leader} over "
                f"{'+'.join(wanted) or 'nothing'}; leave {dim} out, and it is split as {leader} where that "
                f"divides its size {size}"
            )
        for layout, is_stored in ((used, False), (stored, True)):
            if dim not in layout:
                axes = self.axes(leader, stored=is_stored)
                while size % math.prod(self.mesh.shape[axis] for axis in axes):
                    axes = axes[:-1]
                layout[dim] = axes
        return replace(self, used=used, stored=stored)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[bool]:
        """Puts the mesh in force, in place of another that may be: without it, what compiled functions make
        of constants has no layout from JAX 0.11 on. Within a transformation such as `jax.jit`, where JAX
        allows no change, the mesh stays the caller's, and False is given. Raises `NeojaxError` where that is
        another."""
        current = jax.sharding.get_abstract_mesh()
        try:
            entered = jax.set_mesh(self.mesh)  # type: ignore[arg-type]
        except ValueError:
            mine = self.mesh.abstract_mesh
            if not current.empty and current != mine:
                raise NeojaxError(
                    f"the model lies on mesh {shape_text(mine.shape)}, but {shape_text(current.shape)} is "
                    "in force, and cannot be changed within jax.jit and its like; call them inside `with "
                    "jax.set_mesh(model.layout.mesh)`"
                ) from None
            yield False
            return
        with entered:
            yield True

    def put(self, array: np.ndarray, *dims: str) -> jax.Array:
        """`array`, the same on every host, on the mesh, laid out by the names of its dimensions; whole
        without them."""
        return jax.device_put(array, self.sharding(dims or [""] * array.ndim, array.shape))

    def fetch(self, array: jax.Array) -> np.ndarray:
        """`array` on the host, also where parts of it are on other hosts."""
        if not array.is_fully_addressable:
            array = jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))
        return np.asarray(array)

    def entered(self, array: jax.Array) -> jax.Array:
        """`array` as computation on this mesh begins with it: where no mesh is in force and, within
        `jax.jit`, none can be put there, the devices of the whole are those of what it is given, so that it
        is whole on each of the mesh's."""
        if not jax.sharding.get_abstract_mesh().empty or isinstance(self.mesh, AbstractMesh):
            return array
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))

    def ordinary(self, array: jax.Array) -> jax.Array:
        """`array`, of this mesh, as code that knows of no mesh takes it: split as it was, over axes that the
        compiler lays out by itself; or, where another mesh is in force, whole on each of that one's
        devices."""
        current = jax.sharding.get_mesh()
        if current == self.mesh or isinstance(self.mesh, AbstractMesh):
            return array
        if not current.empty:
            return jax.device_put(array, NamedSharding(current, PartitionSpec()))
        if self.mesh.size == 1:
            return jax.device_put(array, SingleDeviceSharding(self.device))
        names = self.mesh.axis_names
        plain = Mesh(self.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
        return jax.device_put(array, NamedSharding(plain, jax.typeof(array).sharding.spec))

    def padded_vocab(self, n_vocab: int) -> int:
        """Rows of the embedding table: `n_vocab` rounded up so that every axis laid over it divides it."""
        parts = math.lcm(self.split("vocab"), self.split("vocab", stored=True))
        return -(-n_vocab // parts) * parts


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh of `config` over `devices`, Explicit axes. Default: all devices of all processes of
    this job, which are joined, or the first `cpu_devices` of each."""
    is_here = devices is None
    if devices is None:
        join(config)
        use_cpu_devices(config.cpu_devices)
        devices = available(config.cpu_devices)
    shape = fill_shape(parse_shape(config.shape), len(devices), f'mesh.shape="{config.shape}"', is_here)
    dcn = parse_shape(config.dcn_shape, "mesh.dcn_shape") if config.dcn_shape else {}
    for axis, size in dcn.items():
        if axis not in shape or size < 1 or shape[axis] % size:
            raise NeojaxError(
                f'mesh.dcn_shape="{config.dcn_shape}": {axis}:{size} must be a factor of an axis of '
                f"mesh.shape ({shape_text(shape)})"
            )
    types = (AxisType.Explicit,) * len(shape)
    return Mesh(arranged(shape, dcn, devices), tuple(shape), axis_types=types)


def fill_shape(shape: Mapping[str, int], devices: int, what: str, is_here: bool = True) -> dict[str, int]:
    """Replaces -1 by the devices that are left. Raises `NeojaxError` unless the product is `devices`, which
    are those of this machine or are not here."""
    known = math.prod(s for s in shape.values() if s != -1)
    filled = {a: devices // known if s == -1 else s for a, s in shape.items()}
    if math.prod(filled.values()) != devices or not all(filled.values()):
        free = next((a for a, s in shape.items() if s == -1), next(iter(shape)))
        raise NeojaxError(
            f"{what} needs {'a multiple of ' if -1 in shape.values() else ''}{known} device(s) but there "
            f"{'is' if devices == 1 else 'are'} {devices}; try mesh.shape={_fitting(shape, free, devices)}, "
            + (f"or mesh.cpu_devices={known} to run on fake CPU devices" if is_here else "or another machine")
        )
    return filled


def _fitting(shape: Mapping[str, int], free: str, devices: int) -> str:
    """A shape with the same axes for `devices`: `free` takes what the others, where they divide it, leave."""
    others = [axis for axis in shape if axis != free]
    keep = devices % math.prod(shape[axis] for axis in others) == 0
    sizes = {axis: shape[axis] if keep else 1 for axis in others} | {free: -1}
    return ",".join(f"{axis}:{sizes[axis]}" for axis in shape)


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The mesh and both maps of `config`; `param_layout` is taken on top of `layout`."""
    return layout_on(make_mesh(config, devices), config)


def abstract_layout(config: MeshConfig) -> Layout:
    """As `make_layout`, for a mesh whose devices need not be here; an axis of -1 takes those that are."""
    shape = parse_shape(config.shape)
    if -1 in shape.values():
        count = config.cpu_devices or jax.device_count()
        shape = fill_shape(shape, count, f'mesh.shape="{config.shape}"')
    mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Explicit,) * len(shape))
    return layout_on(mesh, config)


def layout_on(mesh: Mesh | AbstractMesh, config: MeshConfig) -> Layout:
    """The two maps of `config` over the axes of `mesh`."""
    used = parse_layout(config.layout, mesh.axis_names, "mesh.layout")
    stored = parse_layout(config.param_layout, mesh.axis_names, "mesh.param_layout")
    if stored.get("layers", used.get("layers")) != used.get("layers"):
        raise NeojaxError(
            f'mesh.param_layout="{config.param_layout}" has layers, whose stages compute where they are '
            "stored; give layers in mesh.layout alone"
        )
    return Layout(mesh, used, {**used, **stored})


def single_device(device: jax.Device | None = None) -> Layout:
    """The layout of one device: nothing is split."""
    return make_layout(MeshConfig(shape="data:1", layout=""), [device or jax.devices()[0]])
