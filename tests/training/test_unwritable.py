"""What cannot be written is one line; the last good checkpoint stays whole, and the same command goes on from
it."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neojax.errors import NeojaxError
from neojax.runs.checkpoint import Checkpoints
from neojax.training.loop import Run, train
from neojax.training.metrics import MetricsWriter, read_metrics

SMALL = (
    "model.n_layer=1", "model.attention_types=[global]", "data.validation=", "train.checkpoint_every=3",
    "train.steps=9", "train.tensorboard=true", "train.keep=9",
)  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting is not allowed")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leaves no room in the file system of `folder`, once checkpoint 3 is there; returns what takes it."""
    while not (folder / "run" / "checkpoints" / "3").exists():
        time.sleep(0.01)
    with open(folder / "filler", "wb", buffering=0) as f:
        for size in (1 << 16, 1 << 9, 1):
            try:
                while True:
                    f.write(b"x" * size)
            except OSError as e:
                assert e.errno == errno.ENOSPC
    return folder / "filler"


def at_steps(monkeypatch, actions):
    """Does `actions[step]` when step `step` is done."""
    original = Run.is_stopping

    def acting(self):
        if self.step in actions:
            actions[self.step]()
        return original(self)

    monkeypatch.setattr(Run, "is_stopping", acting)


@pytest.fixture(scope="module")
def losses(settings, tmp_path_factory):
    """Those of a run that was let alone."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(settings(run, *SMALL))
    return [row["loss"] for row in read_metrics(run)]


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(
    settings, small_disk, losses, monkeypatch, capfd
):
    run = small_disk / "run"
    with monkeypatch.context() as patch:
        at_steps(patch, {4: lambda: fill(small_disk)})
        with pytest.raises(NeojaxError, match="No space left on device") as error:
            train(settings(run, *SMALL))
    assert "\n" not in str(error.value) and str(run) in str(error.value)
    (small_disk / "filler").unlink()
    assert capfd.readouterr().err == ""
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [3]
    train(settings(run, *SMALL))
    assert [row["loss"] for row in read_metrics(run)] == losses
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [3, 6, 9]
    assert sorted(os.listdir(run / "checkpoints")) == ["3", "6", "9"]


def test_a_full_disk_may_be_passed_over_and_nothing_of_the_metrics_is_lost(
    settings, small_disk, losses, monkeypatch, capfd
):
    run = small_disk / "run"
    at_steps(monkeypatch, {4: lambda: fill(small_disk), 8: lambda: (small_disk / "filler").unlink()})
    train(settings(run, *SMALL, "train.on_save_error=continue"))
    out, err = capfd.readouterr()
    said = " ".join(out.split())
    assert "checkpoints/6 could not be saved: No space left on device; the last whole one is step 3" in said
    assert "finished 9 steps" in said and err == ""
    assert [row["loss"] for row in read_metrics(run)] == losses
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [3, 9]
    assert sorted(os.listdir(run / "checkpoints")) == ["3", "9"]


LIMITED = """
import resource, sys
import jax, jax.numpy as jnp
from neojax.errors import SaveError
from neojax.runs.checkpoint import Checkpoints
state = {"params": {"a": jax.random.normal(jax.random.key(0), (50_000,))}, "opt_state": {"count": jnp.ones(1)}}
with Checkpoints(sys.argv[1], keep=3) as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for when in ("wait", "save"):
        checkpoints.save(2, state, {})
        try:
            checkpoints.wait() if when == "wait" else checkpoints.save(3, state, {})
            print("saved")
        except SaveError as e:
            print(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(4, state, {})
    checkpoints.wait()
    checkpoints.restore(4, jax.eval_shape(lambda: state))
    print(checkpoints.steps())
"""  # noqa: E501


def test_a_save_that_fails_in_the_background_is_one_line_and_leaves_nothing(tmp_path):
    """Whether it is waited for or comes to light at the next; a limit on sizes of files stands for a
    quota."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    first, second, steps = done.stdout.splitlines()
    for line in (first, second):
        assert line == (
            f"checkpoint {tmp_path}/checkpoints/2 could not be saved: File too large; the last whole one is "
            "step 1, from which the same command goes on once that is mended"
        )
    assert steps == "[1, 4]"
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "4"]


def test_a_run_directory_that_is_a_file_or_cannot_be_written_is_one_line(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NeojaxError, match="file is a file; name a folder"):
        train(settings(tmp_path / "file", *SMALL))
    with pytest.raises(NeojaxError, match="cannot write there"):
        train(settings("/proc/run", *SMALL))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    with pytest.raises(NeojaxError, match="checkpoints"):
        train(settings(tmp_path / "run", *SMALL))


def test_metrics_are_whole_lines_though_writing_them_failed(tmp_path):
    class Full:
        """A file that takes a few bytes more, and is then full."""

        def __init__(self, file):
            self.file, self.room = file, 10

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = self.file.write(data[: self.room])
            self.room -= taken
            return taken

        def __getattr__(self, name):
            return getattr(self.file, name)

    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.0})
    whole, writer._file = writer._file, Full(writer._file)
    with pytest.raises(NeojaxError, match="the metrics could not be written: No space left on device"):
        writer.write(2, {"loss": 2.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    writer._file = whole
    writer.write(3, {"loss": 3.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
