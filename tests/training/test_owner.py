"""A run directory is trained by one process at a time; whoever only reads it needs nobody's leave."""

import os
import shutil
import subprocess
import sys
import threading
import time

import jax
import pytest

from neojax import config as configuration
from neojax import loading
from neojax.errors import NeojaxError
from neojax.lock import Lock
from neojax.training.health import Health
from neojax.training.loop import train
from neojax.training.metrics import read_metrics


def test_a_run_that_is_being_trained_is_read_but_not_trained_by_another(settings, whole_run, tmp_path):
    run = shutil.copytree(whole_run, tmp_path / "run")
    with Lock(run, "trained"):
        before = {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.name != "lock"}
        with pytest.raises(
            NeojaxError, match=rf"run is being trained by process {os.getpid()} on .* since 20"
        ):
            train(settings(run, "train.steps=30"))
        assert before == {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.name != "lock"}
        loading.load(run)


def test_a_run_directory_that_is_renamed_meanwhile_is_made_anew_with_a_word(
    settings, tmp_path, monkeypatch, capsys
):
    run, away = tmp_path / "run", tmp_path / "away"
    add = Health.add

    def moved(self, step, values):
        if step == 8:
            while any(t.name == "neojax-save" for t in threading.enumerate()):
                time.sleep(0.01)
            run.rename(away)
        add(self, step, values)

    monkeypatch.setattr(Health, "add", moved)
    train(settings(run, "train.steps=12"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"WARNING: {run} was renamed or deleted while it was being trained" in said
    assert [row["step"] for row in read_metrics(run)] in ([10, 11, 12], [11, 12])
    assert [row["step"] for row in read_metrics(away)][:7] == list(range(1, 8))
    assert loading.load(run) and loading.load(away)
    assert os.listdir(run / "checkpoints") and (away / "lock").exists() and not (run / "lock").exists()


def test_of_two_starts_at_once_one_trains_and_one_says_who(settings, tmp_path):
    """Through the command line, which starts itself anew."""
    run = tmp_path / "run"
    small = ("model.n_layer=1", "model.attention_types=[global]", "data.validation=", "train.steps=6")
    (tmp_path / "c.yml").write_text(configuration.dump(settings(run, *small)))
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    environment.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-m", "neojax", "train", str(tmp_path / "c.yml")]
    pipes = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    out = [process.communicate() for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, out
    loser = codes.index(2) if 2 in codes else None
    if loser is not None:
        assert (
            out[loser][1]
            == (
                f"error: {run} is being trained by process {both[1 - loser].pid} on {os.uname().nodename} "
                "since "
            )
            + out[loser][1].split("since ")[1]
        )
    else:  # they met at no moment, and the later found the run finished
        assert any("is finished: 6 of 6 steps" in text for text, _ in out)
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert sorted(f.name for f in run.iterdir()) == [
        "checkpoints",
        "config.yml",
        "metrics.jsonl",
        "newest.json",
    ]
