"""How a process learns that it is one of several, and which part of its host is its own."""

import subprocess
import sys

import pytest

from neojax.config import MeshConfig
from neojax.errors import NeojaxError
from neojax.layout import processes
from neojax.layout.processes import find, local_gpus, visible_gpus

JAX = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
NAMED = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}
SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine without GPUs or TPUs, unless the environment names some."""
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])


def slurm(tasks: int, tasks_a_node: str, local: int, gpus: str = "") -> dict[str, str]:
    numbers = {
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": tasks_a_node,
        "SLURM_LOCALID": str(local),
    }
    return {**SLURM, **numbers, "CUDA_VISIBLE_DEVICES": gpus}


@pytest.mark.parametrize(
    "mesh, environ, found",
    [
        ({}, {}, None),
        ({"distributed": True}, {}, {}),
        ({}, JAX, NAMED),
        ({"coordinator": "host:1234", "num_processes": 4, "process_id": 3}, {}, NAMED),
        ({"coordinator": "host:1234", "num_processes": 4, "process_id": 3}, {**JAX, "JAX_PROCESS_ID": "0"}, NAMED),  # noqa: E501
        # One task a node takes all its GPUs, one task a GPU its own, also where Slurm shows it no other.
        ({}, slurm(2, "1(x2)", 0, "0,1,2,3"), {"local_device_ids": [0, 1, 2, 3]}),
        ({}, slurm(8, "4(x2)", 2, "0,1,2,3"), {"local_device_ids": [2]}),
        ({}, slurm(8, "4(x2)", 2, "2"), {"local_device_ids": [0]}),
        ({}, slurm(4, "2(x2)", 1, "0,1,2,3"), {"local_device_ids": [2, 3]}),
        ({}, slurm(2, "1(x2)", 0), {}),
        ({}, slurm(1, "1", 0, "0,1,2,3"), None),
        (
            {},
            {
                "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",  # noqa: E501
                "CUDA_VISIBLE_DEVICES": "0,1",
            },
            {"local_device_ids": [1]},
        ),
    ],
)  # fmt: skip
def test_processes_are_found(mesh, environ, found):
    assert find(MeshConfig(**mesh), environ) == found


def test_a_tpu_machine_asks_jax_whether_it_is_one_of_a_pod(monkeypatch):
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    assert find(MeshConfig(), {}) == {}
    assert find(MeshConfig(cpu_devices=8), {}) is None
    assert find(MeshConfig(), {"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    "mesh, environ, cause",
    [
        ({"num_processes": 4}, {}, "mesh.num_processes=4 is given, but not mesh.coordinator"),
        ({"process_id": 1}, {"JAX_NUM_PROCESSES": "2"}, "not mesh.coordinator"),
        ({}, {**JAX, "JAX_PROCESS_ID": "4"}, "numbered from 0"),
        ({}, {**JAX, "JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES=four"),
        ({}, {**JAX, "JAX_COORDINATOR_ADDRESS": "host"}, "HOST:PORT"),
        ({}, slurm(3, "3", 0, "0,1,2,3"), "3 processes on this host cannot share its 4 GPUs"),
    ],
)
def test_what_cannot_be_is_one_line(mesh, environ, cause):
    with pytest.raises(NeojaxError, match=cause):
        find(MeshConfig(**mesh), environ)


@pytest.mark.parametrize("processes_here, gpus", [(1, 8), (2, 8), (4, 8), (8, 8)])
def test_every_gpu_of_a_host_is_used_by_one_process(processes_here, gpus):
    shares = [local_gpus(processes_here, i, gpus) for i in range(processes_here)]
    assert sorted(gpu for share in shares for gpu in share) == list(range(gpus))


def test_gpus_that_a_process_may_use(monkeypatch):
    assert (
        visible_gpus({"CUDA_VISIBLE_DEVICES": "2,5"}) == 2 and visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
    )
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    assert visible_gpus({}) == 2


def test_what_libraries_write_to_standard_output_goes_to_standard_error():
    program = (
        "import os; from neojax.layout.processes import keep_stdout; print('before'); keep_stdout();"
        "os.write(1, b'of a library\\n'); print('ours \u00fc')"
    )
    found = subprocess.run([sys.executable, "-X", "utf8", "-c", program], capture_output=True, check=True)
    assert found.stdout.decode() == "before\nours \u00fc\n" and found.stderr.endswith(b"of a library\n")
