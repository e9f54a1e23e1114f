"""JAX's devices as a mesh takes them: fake ones on CPU, and real ones in an order that follows their
links."""

import os
import warnings
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from neojax.cores import cores
from neojax.errors import NeojaxError

# The threads in each pool of XLA's CPU client, which reads this variable, else NPROC, when it starts; by
# itself it takes as many as there are cores, and no fewer than it has devices.
THREADS = "PJRT_NPROC"


def fake_cpu_devices(count: int) -> None:
    """Asks JAX for `count` fake CPU devices in this process, if any, with two threads for each; to be called
    before JAX is first used.

    With one thread for each, XLA of jaxlib 0.10 and 0.11 may stop for ever where Python is more than 32
    programs ahead of the devices. A device has at most 32 programs in flight; what starts one more waits, on
    a thread of the pool that runs the programs (`PjRtCpuDevice::max_inflight_computations_semaphore`). The
    devices of the running program meet in a collective, and the one whose thread is taken does not come: XLA
    says "... may be stuck", and after a minute "Termination timeout ..." and ends the process. One program
    with collectives runs at a time and Python starts one at a time, so twice the devices are enough;
    synchronous dispatch (`jax_cpu_enable_async_dispatch`) is no help. jaxlib 0.12 runs programs in a pool of
    their own.
    """
    if not count:
        return
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return  # the backend has started: `use_cpu_devices` tells whether it is the one that was asked for
    if _threads() < 2 * count:
        os.environ[THREADS] = str(2 * count)


def _threads() -> int:
    """How many XLA would take for a single device."""
    given = (os.environ.get(name, "") for name in (THREADS, "NPROC"))
    return next((int(number) for number in given if number.isdecimal()), cores())


def use_cpu_devices(count: int) -> None:
    """Makes JAX run on `count` fake CPU devices a process. Raises `NeojaxError` if it runs on something else
    already."""
    if not count:
        return
    fake_cpu_devices(count)
    if jax.default_backend() != "cpu" or jax.local_device_count() < count:
        raise NeojaxError(
            f"mesh.cpu_devices={count}: JAX has already started on {jax.local_device_count()} "
            f"{jax.default_backend()} device(s); set it before JAX is first used"
        )


def available(cpu_devices: int = 0) -> list[jax.Device]:
    """All devices of all processes; with `cpu_devices`, the first so many of each."""
    devices = jax.devices()
    if not cpu_devices:
        return devices
    kept: dict[int, list[jax.Device]] = {}
    for device in devices:
        kept.setdefault(device.process_index, []).append(device)
    return [device for own in kept.values() for device in own[:cpu_devices]]


def arranged(shape: Mapping[str, int], dcn: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """`devices` in the order of a mesh of `shape`, axis -> size: neighbours of an axis are joined by links
    where the hardware has them. dcn: axis -> the part of it that crosses slices, which only a network joins.

    Where no axes of a TPU slice's torus multiply to the wanted sizes, an axis of the torus is split; a
    warning says so. Raises `NeojaxError` where `dcn` does not fit the slices.
    """
    sizes = tuple(shape.values())
    if not dcn:
        slices = {getattr(d, "slice_index", 0) for d in devices} if devices[0].platform == "tpu" else {0}
        if len(slices) > 1:
            raise NeojaxError(
                f"the devices are {len(slices)} slices, joined by a network; say which axis crosses it, "
                f"such as mesh.dcn_shape={next(iter(shape))}:{len(slices)}"
            )
        return _on_torus(shape, devices)
    outer = [dcn.get(axis, 1) for axis in shape]
    inner = [size // part for size, part in zip(sizes, outer)]
    try:
        return np.asarray(mesh_utils.create_hybrid_device_mesh(inner, outer, devices))
    except (ValueError, AttributeError) as e:
        raise NeojaxError(f'mesh.dcn_shape="{shape_text(dcn)}" does not fit these devices: {e}') from None


def shape_text(shape: Mapping[str, int]) -> str:
    """A mesh's shape in the form of `mesh.shape`."""
    return ", ".join(f"{axis}:{size}" for axis, size in shape.items())


def _on_torus(shape: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
    sizes = tuple(shape.values())
    try:
        return mesh_utils.create_device_mesh(sizes, devices)
    except NotImplementedError:
        found = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    torus = "x".join(str(1 + max(at)) for at in zip(*(d.coords for d in devices)) if max(at))
    warnings.warn(
        f'mesh.shape="{shape_text(shape)}" splits an axis of the {torus} torus, whose parts are no rings: '
        "collectives over them may be slower than with sizes that are products of whole axes",
        stacklevel=4,
    )
    return found
