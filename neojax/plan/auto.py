"""`mesh.layout: auto`: the best layout for the devices at hand, by the analytic model."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax

from neojax.config import Config, MeshConfig
from neojax.errors import NeojaxError
from neojax.host_memory import host_memory
from neojax.layout.chips import Chip, chip_of
from neojax.layout.devices import available, use_cpu_devices
from neojax.layout.processes import join
from neojax.plan.candidates import Found, emptied, explore, layouts
from neojax.plan.estimate import duration
from neojax.plan.machine import Machine
from neojax.plan.report import gb
from neojax.storage.remote import place

AUTO = "auto"


def is_auto(mesh: MeshConfig) -> bool:
    """Whether the layout is to be chosen."""
    return mesh.layout.strip() == AUTO


def here(devices: Sequence[jax.Device]) -> Machine:
    """The machine that `devices` are. Chips that no table has, and fake devices, count as a processor that
    shares this machine's memory."""
    first, count = devices[0], len(devices)
    chip = chip_of(first)
    own = (first.memory_stats() or {}).get("bytes_limit") if first.platform != "cpu" else None
    if chip is None:
        own = own or (host_memory() or 16e9) / len(jax.local_devices())
        chip = Chip(first.device_kind, (first.device_kind,), 1e11, own, 1e10, 5e9, 0, count, 1e9, count)
    if not chip.axes:
        return Machine(chip, (count,), limit=own)
    slices = len({getattr(d, "slice_index", 0) or 0 for d in devices})
    coords = [tuple(d.coords) for d in devices]  # type: ignore[attr-defined]
    sides = [1 + max(at[i] for at in coords) - min(at[i] for at in coords) for i in range(chip.axes)]
    return Machine(chip, tuple(sides), slices, own)


def resolved(config: Config, on: Machine | None = None, say: Callable[[str], None] = print) -> Config:
    """`config` with a layout in place of `mesh.layout: auto`: that of its run directory where the run has
    begun, else the best by the analytic model on a machine (default: the devices at hand). Says which, and
    why. Any other configuration is given back as it is.

    Raises `NeojaxError` where no layout fits, or the mesh's other keys are given beside auto.
    """
    if not is_auto(config.mesh):
        return config
    plain = MeshConfig()
    for key in ("shape", "param_layout", "dcn_shape"):
        if getattr(config.mesh, key) != getattr(plain, key):
            raise NeojaxError(
                f"mesh.layout=auto chooses mesh.{key} too; leave mesh.{key}="
                f"{getattr(config.mesh, key)!r} out, or give a layout"
            )
    begun = _begun(config)
    if begun is not None:
        say(f"mesh.layout=auto: as the run began, mesh {begun.shape}, layout {begun.layout!r}")
        keys = {key: getattr(begun, key) for key in ("shape", "layout", "param_layout", "dcn_shape")}
        return replace(config, mesh=replace(config.mesh, **keys))
    if on is None:
        join(config.mesh)
        use_cpu_devices(config.mesh.cpu_devices)
        on = here(available(config.mesh.cpu_devices))
    found = Found()
    explore(config, on, layouts(config, on, stages=False), free=False, found=found)
    if not found.fitting:
        raise emptied(found, config, on)
    one, analysis = found.fitting[0]
    estimate = analysis.estimate
    more = ""
    if len(found.fitting) > 1:
        second, other = found.fitting[1]
        more = f"; next is {second.told}, {other.estimate.seconds / estimate.seconds - 1:.0%} slower"
    lost = f"; {found.constraints['memory']} do not fit" if found.constraints["memory"] else ""
    stored = f", param_layout {one.mesh.param_layout!r}" if one.mesh.param_layout else ""
    of = "1 layout that fits" if len(found.fitting) == 1 else f"{len(found.fitting)} layouts that fit"
    say(
        f"mesh.layout=auto: mesh {one.mesh.shape}, layout {one.mesh.layout!r}{stored}: of "
        f"{of} {on} the soonest by the model, "
        f"{duration(estimate.seconds)} a step, {gb(analysis.work.memory.total)} of {gb(analysis.room)} a "
        f"device{more}{lost}"
    )
    return replace(config, mesh=one.mesh)


def _begun(config: Config) -> MeshConfig | None:
    """The mesh of a run that has begun, as its own configuration says; None where there is none."""
    from neojax.config import of_run

    if not config.train.run_dir:
        return None
    folder = place(config.train.run_dir)
    if not (folder / "config.yml").is_file() or not (folder / "checkpoints").is_dir():
        return None
    mesh = of_run(folder).mesh
    return None if is_auto(mesh) else mesh
