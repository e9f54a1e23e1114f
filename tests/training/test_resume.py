"""A run that is stopped in any way and started again gives bit for bit the losses of one that was not."""

import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import true_rows

from neojax import config as configuration
from neojax import loading
from neojax.config import MeshConfig
from neojax.runs.checkpoint import Checkpoints
from neojax.training import run as run_module
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

# A process that trains config.yml and is killed, as if by the machine, while it does `moment` for the n-th
# time.
KILLED = """
import os, signal, sys
import neojax.training.loop as loop
from neojax import config
from neojax.runs.checkpoint import Checkpoints
from neojax.training.metrics import MetricsWriter

cls, name, step = {"save": (Checkpoints, "save", 10), "step": (MetricsWriter, "write", 17)}[sys.argv[2]]
original = getattr(cls, name)

def then_die(self, at, *rest):
    original(self, at, *rest)
    if at == step:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(cls, name, then_die)
loop.train(config.load(sys.argv[1]))
"""


def exact(run):
    """Every number of metrics.jsonl that does not measure time."""
    kept = ("loss", "grad_norm", "learning_rate", "validation_loss", "tokens")
    return {row["step"]: {k: row[k] for k in kept if k in row} for row in read_metrics(run)}


def assert_same_run(run, whole_run):
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 21))
    assert exact(run) == exact(whole_run)


def killed(config_file, moment):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    command = [sys.executable, "-c", KILLED, str(config_file), moment]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


def test_sigkill_while_saving_and_while_training(settings, whole_run, tmp_path):
    """Killed with a save under way, again some steps after a checkpoint, then left to finish."""
    run = tmp_path / "run"
    config = settings(run)
    (tmp_path / "c.yml").write_text(configuration.dump(config))
    killed(tmp_path / "c.yml", "save")
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == 5  # that of step 10 was cut off
    killed(tmp_path / "c.yml", "step")
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() in (10, 15)
    assert read_metrics(run)[-1]["step"] == 17  # to be trained again
    train(config)
    assert_same_run(run, whole_run)


@pytest.mark.slow
def test_the_promise_holds_with_the_compilers_optimisations(settings, tmp_path):
    """All other tests compile without them. Two processes, each of which compiles for itself, as a user's
    do."""
    code = (
        "import sys; from neojax.cli import main; sys.exit(any([main(['train', file]) for file in "
        "sys.argv[1:]]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_FLAGS", "JAX_COMPILATION"))}
    precisions = ("float32", "bfloat16")
    one = ("model.n_layer=1", "model.attention_types=[local]", "data.validation=")
    steps = ("train.steps=6", "train.checkpoint_every=3", "train.microbatch=0")

    def trained(kind):
        """The runs, trained to their end in a new process."""
        files = [tmp_path / f"{kind}-{precision}.yml" for precision in precisions]
        for file, precision in zip(files, precisions):
            config = settings(file.with_suffix(""), *one, *steps, f"train.precision={precision}")
            file.write_text(configuration.dump(config))
        result = subprocess.run(
            [sys.executable, "-c", code, *files], env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return [exact(file.with_suffix("")) for file in files]

    whole = trained("whole")
    for precision in precisions:  # as one that ended somewhere between steps 3 and 6
        run = shutil.copytree(tmp_path / f"whole-{precision}", tmp_path / f"stopped-{precision}")
        shutil.rmtree(run / "checkpoints" / "6")
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:4]))
    assert trained("stopped") == whole
    assert [list(run) for run in whole] == [list(range(1, 7))] * 2 and whole[0] != whole[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(
    number, settings, whole_run, tmp_path, monkeypatch, capsys
):
    """The signal comes at a step that is neither logged, evaluated nor saved otherwise."""
    original = run_module.Share.place
    calls = []

    def signalled(*args):
        calls.append(None)
        if len(calls) == 8:
            signal.raise_signal(number)
        return original(*args)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Share, "place", signalled)
        train(settings(tmp_path, "train.log_every=3", "train.eval_every=0"))
    assert signal.getsignal(number) is before
    said = " ".join("".join(capsys.readouterr()).split())
    assert "stopped at step 8; the same command goes on" in said
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 8
    train(settings(tmp_path, "train.log_every=3"))
    theirs = exact(whole_run)
    ours = exact(tmp_path)
    assert list(ours) == [3, 6, 9, 10, 12, 15, 18, 20]
    for step, row in ours.items():
        if "loss" in row:
            assert row["loss"] == theirs[step]["loss"], step
    assert ours[20]["validation_loss"] == theirs[20]["validation_loss"]


def test_a_bfloat16_moment_stays_one_and_a_stopped_run_the_same(settings, tmp_path):
    small = ("model.n_layer=1", "model.attention_types=[global]", "data.validation=")
    for name, stops in (("whole", [6]), ("stopped", [3, 6])):
        for steps in stops:
            train(settings(tmp_path / name, *small, "train.moment_dtype=bfloat16", f"train.steps={steps}"))
    assert exact(tmp_path / "stopped") == exact(tmp_path / "whole")
    saved = (
        ocp.PyTreeCheckpointHandler().metadata(tmp_path / "stopped" / "checkpoints" / "6" / "opt_state").tree
    )
    types = {(path.split("/")[1], str(leaf.dtype)) for path, leaf in saved.items() if "blocks" in path}
    assert types == {("mu", "bfloat16"), ("nu", "float32")}


def test_parameters_are_identical_on_every_mesh(whole_run):
    """8 devices to 4 to 1, where the vocabulary is padded, padded more, and not."""
    meshes = {
        8: MeshConfig("data:4, model:2", "batch:data, heads:model, vocab:model", "embd:data", cpu_devices=8),
        4: MeshConfig("data:1, model:4", "mlp:model, vocab:model", "embd:data", cpu_devices=4),
        1: None,
    }
    models = {count: loading.load(whole_run, mesh=mesh) for count, mesh in meshes.items()}
    params = {count: model.params() for count, model in models.items()}
    assert [len(p["wte"].sharding.device_set) for p in params.values()] == [8, 4, 1]
    assert [p["wte"].shape[0] for p in params.values()] == [62, 64, 61]
    for count in (4, 1):
        for name, value in true_rows(params[8]).items():
            np.testing.assert_array_equal(true_rows(params[count])[name], value, err_msg=name)
    assert not np.asarray(params[4]["wte"])[61:].any()


@pytest.mark.parametrize(
    "mesh",
    [
        ("data:4", "batch:data", "embd:data", 4),
        ("data:2, model:4", "batch:data, vocab:model, mlp:model", "embd:data", 8),
        ("data:1", "", "", 1),
    ],
    ids=["4 devices", "other padding", "1 device"],
)
def test_a_run_goes_on_on_another_mesh(mesh, settings, whole_run, tmp_path):
    """Optimizer state and data order come along: the losses are those of the old mesh, up to rounding."""
    run = shutil.copytree(whole_run, tmp_path / "run")
    for step in (20, 15):
        shutil.rmtree(run / "checkpoints" / str(step))
    keys = ("shape", "layout", "param_layout", "cpu_devices")
    train(settings(run, *(f"mesh.{key}={value}" for key, value in zip(keys, mesh))))
    ours, theirs = exact(run), exact(whole_run)
    assert list(ours) == list(theirs)
    for step in range(11, 21):
        assert ours[step]["loss"] == pytest.approx(theirs[step]["loss"], rel=1e-4), step
