"""What happens to the processes of a run when one of them is killed, stopped, or hangs."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from neojax.commands.launch import environments
from neojax.training.metrics import read_metrics

ROOT = Path(__file__).parent.parent
STEPS = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """All whose randomness could depend on who computes it: masked tokens, dropout, microbatches, a
    shuffle."""
    from helpers import write_data

    folder = tmp_path_factory.mktemp("pod")
    path = folder / "config.yml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "n_layer": 2, "window_size": 5, "n_embd": 16, "n_head": 2, "n_ctx": 16, "n_vocab": 61,
                    "embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1, "causal": False,
                },
                "mesh": {"shape": "data:4", "layout": "batch:data", "param_layout": "embd:data"},
                "data": {"train": str(write_data(folder))},
                "train": {
                    "mlm_mask_id": 60, "batch_size": 8, "microbatch": 4, "steps": STEPS,
                    "learning_rate": 1e-2, "warmup_steps": 2, "log_every": 1, "checkpoint_every": 4, "tensorboard": False,  # noqa: E501
                },
            }
        )
    )  # fmt: skip
    return path


def start(
    config: Path, run: Path | str, *keys: str, processes: int = 2, devices: int = 4
) -> list[subprocess.Popen]:
    """The processes of a run, which share `devices` fake devices."""
    command = [
        sys.executable, "-m", "neojax", "train", str(config), f"train.run_dir={run}",
        f"mesh.cpu_devices={devices // processes}", *keys,
    ]  # fmt: skip
    return [
        subprocess.Popen(
            command, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True  # noqa: E501
        )
        for environment in environments(processes, on_cpu=True)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen], within: float = 240) -> list[tuple[int, str]]:
    """(status, standard error) of each; what still runs after `within` seconds is killed."""
    try:
        errors = [process.communicate(timeout=within)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors)]


def trained(config: Path, run: Path | str, *keys: str, **options) -> list[float]:
    """The losses of a run that goes on to its end."""
    for status, error in ended(start(config, run, *keys, **options)):
        assert status == 0, error
    return losses(run)


def losses(run: Path | str) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def wait_for(path: Path, processes: list[subprocess.Popen]) -> None:
    while not path.exists():
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)


def the_line(error: str) -> str:
    """The one line of ours; JAX's log may have told its side before."""
    lines = [line for line in error.splitlines() if not re.match(r"[EWI]\d{4} |\[Gloo\]", line)]
    assert "stack trace" not in error and "Traceback" not in error, error
    found = [line for line in lines if line.startswith("error: ")]
    assert len(found) == 1, error
    return found[0]


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The losses of two processes that were let alone."""
    return trained(config, tmp_path_factory.mktemp("whole") / "run")


def test_two_processes_hide_and_drop_what_one_does(config, whole, tmp_path):
    assert whole == pytest.approx(trained(config, tmp_path / "run", processes=1), abs=1e-5)


def test_a_run_whose_processes_are_killed_and_hang_goes_on_as_if_nothing_had_been(config, whole, tmp_path):
    run = tmp_path / "run"
    for victim in (1, 0):  # the second holds JAX's coordination service
        processes = start(config, run)
        wait_for(run / "checkpoints" / ("4" if victim else "8"), processes)
        processes[victim].kill()
        (status, error) = ended(processes, within=60)[1 - victim]
        assert status == 75
        assert "another process of this run has ended" in the_line(error)

    processes = start(config, run, "train.stall_seconds=4")
    wait_for(run / "checkpoints" / "12", processes)
    processes[1].send_signal(signal.SIGSTOP)
    ((status, error),) = ended(processes[:1], within=60)
    processes[1].kill()
    processes[1].communicate()
    assert status == 75
    found = re.search(r"step (\d+) has not ended after \d+ s.*, on process 0 of 2", the_line(error))
    assert found and 12 < int(found[1]) <= STEPS
    (log,) = (run / "logs").iterdir()
    assert log.name == f"{os.uname().nodename}-0.log"
    assert found[0] in log.read_text() and "loop.py" in log.read_text()

    assert trained(config, run) == whole


def test_a_run_and_its_data_in_a_bucket_are_the_same_and_survive_a_kill(config, whole, gcs):
    data = yaml.safe_load(config.read_text())["data"]["train"]
    gcs.fs.put(f"{data}/", "bucket/pod/data/", recursive=True)
    run, keys = "gs://bucket/pod/run", ("data.train=gs://bucket/pod/data",)
    processes = start(config, run, *keys)
    while not gcs.fs.exists("bucket/pod/run/checkpoints/8") or gcs.fs.exists(
        "bucket/pod/run/checkpoints/8.saving"
    ):
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.2)
    processes[1].kill()
    ((status, error),) = ended(processes[:1], within=60)
    processes[1].communicate()
    assert status == 75 and "another process of this run has ended" in the_line(error)
    assert trained(config, run, *keys) == whole
    assert not gcs.fs.exists("bucket/pod/run/lock")
    assert {"config.yml", "metrics.jsonl", "newest.json"} <= {
        name.rpartition("/")[2] for name in gcs.fs.ls("bucket/pod/run", detail=False)
    }


def test_all_stop_behind_the_same_step_when_one_is_asked_to(config, whole, tmp_path):
    """Long before a step is logged. What they leave is gone on from with another number of processes and
    another mesh."""
    run = tmp_path / "run"
    processes = start(config, run, "train.log_every=1000")
    wait_for(run / "checkpoints" / "4", processes)
    processes[1].terminate()
    for status, error in ended(processes):
        assert status == 0, error
    assert losses(run) == []
    stopped = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
    assert 4 < stopped < STEPS
    rest = trained(config, run, "mesh.shape=data:2", "mesh.param_layout=", processes=1, devices=2)
    assert rest == pytest.approx(whole[stopped:], abs=1e-4)


def test_when_one_is_stopped_before_the_first_step_the_other_ends_with_a_line(config, tmp_path):
    run = tmp_path / "run"
    processes = start(config, run)
    wait_for(run / "config.yml", processes)
    processes[1].terminate()
    (peer, line), (status, error) = ended(processes)
    if status == 143:
        assert peer == 75 and "another process" in the_line(line) and "before the first step" in error
    else:  # the first step was there already
        assert peer == status == 0
