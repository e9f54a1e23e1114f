"""Several real processes, each with fake devices of its own, train as one process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neojax.commands import launch as launching
from neojax.commands.launch import Launched, environments
from neojax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def launch(*command: str, processes: int = 2, devices: int = 4, **options) -> subprocess.CompletedProcess:
    """Runs `neojax launch` with fake devices, from a clean set of environment variables."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"]
    environment["PYTHONPATH"] = str(ROOT)
    start = ["-m", "neojax", "launch", f"--processes={processes}", f"--cpu-devices={devices}", "--", *command]
    return subprocess.run(
        [sys.executable, *start], env=environment, capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run with everything whose randomness could depend on who computes it: dropout, microbatches, a
    shuffle."""
    from helpers import write_data

    folder = tmp_path_factory.mktemp("launch")
    data = str(write_data(folder))
    path = folder / "config.yml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "n_layer": 2, "n_embd": 16, "n_head": 2, "n_ctx": 16, "n_vocab": 61, "window_size": 5,
                    "embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1,
                },
                "mesh": {
                    "shape": "data:4, model:2", "param_layout": "embd:data",
                    "layout": "batch:data, heads:model, mlp:model, vocab:model",
                },
                "data": {"train": data, "validation": data},
                "train": {
                    "batch_size": 8, "microbatch": 4, "steps": 6, "learning_rate": 1e-2, "warmup_steps": 2,
                    "log_every": 1, "checkpoint_every": 3, "eval_batches": 2, "tensorboard": False,
                },
            }
        )
    )  # fmt: skip
    return path


def losses(run: Path) -> list[float]:
    rows = read_metrics(run)
    return [row["loss"] for row in rows] + [
        row["validation_loss"] for row in rows if "validation_loss" in row
    ]


def test_two_processes_train_as_one(config, tmp_path):
    runs = {count: tmp_path / str(count) for count in (1, 2)}
    for count, run in runs.items():
        done = launch("train", str(config), f"train.run_dir={run}", processes=count, devices=8 // count)
        assert done.returncode == 0, done.stderr
    assert losses(runs[2]) == pytest.approx(losses(runs[1]), abs=2e-6)
    written = yaml.safe_load((runs[2] / "config.yml").read_text())["mesh"]
    assert written["process_id"] is None and written["coordinator"] == ""


def test_what_one_process_cannot_do_ends_all_with_its_line(config, tmp_path):
    done = launch("train", str(config), f"train.run_dir={tmp_path}", f"data.train={tmp_path}/absent")
    assert done.returncode == 2
    lines = [line.removeprefix("[1] ") for line in done.stderr.splitlines() if "error: " in line]
    assert len(lines) == 2 and lines[0] == lines[1] and "absent" in lines[0] and "process 0 of 2" in lines[0]


def test_a_configuration_that_one_host_lacks_ends_all_with_its_line(config, tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "neojax", "train", str(path), f"train.run_dir={tmp_path}/run", "mesh.cpu_devices=4"],  # noqa: E501
            env=environment | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )
        for environment, path in zip(environments(2, on_cpu=True), [config, tmp_path / "absent.yml"])
    ]  # fmt: skip
    told, own = (
        [line for line in process.communicate(timeout=60)[1].splitlines() if "error: " in line]
        for process in started
    )
    assert [process.returncode for process in started] == [2, 2]
    assert len(told) == len(own) == 1 and "absent.yml" in own[0]
    assert told[0].startswith(f"{own[0]} (process 1 of 2, ")


def test_processes_that_do_not_come_are_waited_for_and_the_status_asks_for_a_new_start(config, tmp_path):
    program = (
        "import sys; from neojax.layout import processes; processes.JOIN_SECONDS = 2; "
        "from neojax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", str(config), f"train.run_dir={tmp_path}/run", "mesh.cpu_devices=4"],  # noqa: E501
        env=environments(2, on_cpu=True)[1] | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 75 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "did not come within 2 s" in line


def test_a_host_with_other_settings_is_named(config, tmp_path):
    """As a host with an old copy of the configuration has them."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "neojax", "train", str(config), f"train.run_dir={tmp_path}/run", *own],
            env=environment | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )
        for environment, own in zip(
            environments(2, on_cpu=True), [["mesh.cpu_devices=4"], ["mesh.cpu_devices=4", "train.learning_rate=0.5"]]  # noqa: E501
        )
    ]  # fmt: skip
    for process in started:
        *_, line = process.communicate(timeout=300)[1].splitlines()
        assert process.returncode == 2
        assert "train.learning_rate (0.01 -> 0.5)" in line and "process 1 of 2" in line
    assert not (tmp_path / "run").exists()


def test_one_that_waits_for_a_dead_one_to_join_is_ended_with_a_line(config, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(launching, "END_SECONDS", 1.0)
    command = ["train", str(config), f"train.run_dir={tmp_path}/run", "mesh.cpu_devices=4"]
    launched = Launched(command, environments(2, on_cpu=True))
    launched.processes[1].kill()
    assert launched.wait() == 137
    assert "error: process 0 had not ended 1 s after another failed" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments, cause",
    [
        (["--processes", "2"], "behind --"),
        (["--processes", "0", "--", "train", "x.yml"], "--processes 0"),
        (["--processes", "2", "--cpu-devices", "-1", "--", "train", "x.yml"], "--cpu-devices -1"),
    ],
)
def test_what_cannot_be_launched_is_one_line(arguments, cause, capsys):
    from neojax.cli import main

    assert main(["launch", *arguments]) == 2
    assert cause in capsys.readouterr().err
