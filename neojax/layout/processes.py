"""The processes of one job: finding out that there are several, and joining them.

They are named by `mesh.coordinator`, `mesh.num_processes` and `mesh.process_id`, else by the environment
variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, else found by JAX itself in the
surroundings that Slurm, Open MPI and TPU pods give.
"""

import dataclasses
import glob
import io
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax

from neojax.config import MeshConfig
from neojax.errors import NeojaxError, PeerError
from neojax.layout.devices import fake_cpu_devices
from neojax.layout.peers import HEARTBEAT_SECONDS, cause, forget_peers, told_of_peers

NAMES = {
    "coordinator_address": ("coordinator", "JAX_COORDINATOR_ADDRESS"),
    "num_processes": ("num_processes", "JAX_NUM_PROCESSES"),
    "process_id": ("process_id", "JAX_PROCESS_ID"),
}
JOIN_SECONDS = 300  # hosts of a pod may start apart; one that fails before it joins tells the others


def join(mesh: MeshConfig) -> None:
    """Joins the other processes of this job, where there are any, each with the fake CPU devices that `mesh`
    asks for; to be called before JAX is first used.

    Raises `NeojaxError` where `mesh.distributed` asks for others that cannot be found, where only a part of
    what names them is given, or where they do not come.
    """
    fake_cpu_devices(mesh.cpu_devices)
    if mesh.distributed is False or jax.distributed.is_initialized():
        return
    found = find(mesh, os.environ)
    if found is None:
        return
    keep_stdout()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from whoever handles it
    try:
        with told_of_peers():
            jax.distributed.initialize(
                **found,
                initialization_timeout=JOIN_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except (ValueError, RuntimeError) as e:
        if mesh.distributed is None and not found and "should be defined" in str(e):
            return  # a TPU machine by itself, with nobody to ask
        forget_peers()
        if not isinstance(e, ValueError):  # found, but not there
            raise PeerError(
                f"mesh.distributed: the other processes did not come within {JOIN_SECONDS} s, or do not "
                f"answer{cause(e)}; start the same command on all hosts"
            ) from None
        raise NeojaxError(
            f"mesh.distributed: cannot find the other processes{cause(e)}; outside TPU pods, Slurm and Open "
            "MPI give every process mesh.coordinator=HOST:PORT mesh.num_processes=N mesh.process_id=I"
        ) from None


def keep_stdout() -> None:
    """From now on standard output has what this program prints alone: what libraries beneath Python write to
    it, as Gloo does of every connection, goes to standard error."""
    ours = sys.stdout
    if ours is None or ours is not sys.__stdout__ or not isinstance(ours, io.TextIOWrapper):
        return  # somebody else keeps it
    try:
        ours.flush()
        own = os.dup(ours.fileno())
        os.dup2(2, ours.fileno())
    except (OSError, ValueError):
        return  # closed
    buffering = 1 if ours.line_buffering else -1
    sys.stdout = open(own, "w", buffering, ours.encoding, ours.errors)  # noqa: SIM115


def find(mesh: MeshConfig, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`, as far as JAX does not find them; None where a process
    is alone."""
    if named := _named(mesh, environ):
        return named
    tasks, here, index = _tasks(environ)
    if tasks > 1:
        ids = local_gpus(here, index, visible_gpus(environ))
        return {} if ids is None else {"local_device_ids": ids}
    if mesh.distributed or (_on_tpu(environ) and not mesh.cpu_devices):
        return {}
    return None


def alone(mesh: MeshConfig) -> MeshConfig:
    """`mesh` without the keys that belong to one start of one process, which a run's config.yml does not
    keep."""
    return dataclasses.replace(mesh, distributed=None, coordinator="", num_processes=None, process_id=None)


def _named(mesh: MeshConfig, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What keys or environment variables name; None where they name nothing."""
    given: dict[str, Any] = {}
    for argument, (key, variable) in NAMES.items():
        value = getattr(mesh, key)
        if value in (None, "") and environ.get(variable):
            value = environ[variable]
            if key != "coordinator":
                if not value.isdecimal():
                    raise NeojaxError(f"{variable}={value}: expected a whole number")
                value = int(value)
        if value not in (None, ""):
            given[argument] = value
    if not given.keys() - {"coordinator_address"}:  # the address alone: JAX may find the rest
        return given or None
    for argument, (key, variable) in NAMES.items():
        if argument not in given:
            have = ", ".join(f"mesh.{NAMES[a][0]}={v}" for a, v in given.items())
            raise NeojaxError(f"{have} is given, but not mesh.{key} (or {variable}); give all three, or none")
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise NeojaxError(
            f"mesh.process_id={given['process_id']} of mesh.num_processes={given['num_processes']}: "
            "processes are numbered from 0"
        )
    if not re.fullmatch(r".+:[0-9]+", given["coordinator_address"]):
        raise NeojaxError(
            f"mesh.coordinator={given['coordinator_address']}: expected HOST:PORT, an address of process "
            "0's host and a free port there"
        )
    return given


def _tasks(environ: Mapping[str, str]) -> tuple[int, int, int]:
    """How many tasks the scheduler started, how many of them on this host, and which of those this is."""

    def number(*names: str, default: int) -> int:
        for name in names:
            if found := re.match(
                r"[0-9]+", environ.get(name, "")
            ):  # Slurm writes 4(x2) for 4 tasks on 2 hosts
                return int(found[0])
        return default

    if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
        tasks = number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
        hosts = number("SLURM_STEP_NUM_NODES", "SLURM_NNODES", default=1)
        here = number("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", default=max(1, tasks // hosts))
        return tasks, here, number("SLURM_LOCALID", default=0)
    if "OMPI_COMM_WORLD_SIZE" in environ:
        tasks = number("OMPI_COMM_WORLD_SIZE", default=1)
        here = number("OMPI_COMM_WORLD_LOCAL_SIZE", default=1)
        return tasks, here, number("OMPI_COMM_WORLD_LOCAL_RANK", default=0)
    return 1, 1, 0


def visible_gpus(environ: Mapping[str, str]) -> int:
    """NVIDIA GPUs that a process here may use; 0 where there are none."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return len([word for word in environ["CUDA_VISIBLE_DEVICES"].split(",") if word.strip()])
    return len(glob.glob("/dev/nvidia[0-9]*"))


def local_gpus(processes: int, index: int, gpus: int) -> list[int] | None:
    """Which of the visible `gpus` process `index` of this host's `processes` takes: an equal share, so that
    none is idle.

    A scheduler that shows every process its own GPU alone has shared them already. None where there is no
    GPU. Raises `NeojaxError` where they cannot be shared equally.
    """
    if not gpus:
        return None
    if gpus == 1:
        return [0]
    if gpus % processes:
        raise NeojaxError(
            f"{processes} processes on this host cannot share its {gpus} GPUs equally; start one a host, or "
            "one a GPU"
        )
    share = gpus // processes
    return list(range(index * share, (index + 1) * share))


def _on_tpu(environ: Mapping[str, str]) -> bool:
    """Whether this is a TPU machine that JAX will run on: perhaps one of a pod, which JAX finds out."""
    platforms = environ.get("JAX_PLATFORMS", "")
    return (not platforms or "tpu" in platforms) and has_tpu()


def has_tpu() -> bool:
    """Whether this machine has a device that may be a TPU."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
