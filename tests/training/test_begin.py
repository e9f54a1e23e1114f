"""Where a run begins: never from zero without a word, and never from a checkpoint that is damaged."""

import os
import shutil

import pytest

from neojax.errors import NeojaxError
from neojax.runs.checkpoint import Checkpoints
from neojax.training.loop import train
from neojax.training.metrics import MetricsWriter, read_metrics
from neojax.training.resume import may_begin

SMALL = ("model.n_layer=1", "model.attention_types=[global]", "data.validation=", "train.checkpoint_every=3")


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """A run of six steps, with checkpoints of steps 3 and 6; not to be changed."""
    run = tmp_path_factory.mktemp("begin") / "run"
    train(settings(run, *SMALL, "train.steps=6"))
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def again(settings, run, capsys):
    """Trains on for three steps, and gives what was said, in one line."""

    def go(*overrides):
        capsys.readouterr()
        train(settings(run, *SMALL, "train.steps=9", *overrides))
        return " ".join("".join(capsys.readouterr()).split())

    return go


def files_of(run):
    return {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file()}


def steps_of(run, name="metrics.jsonl"):
    return [row["step"] for row in read_metrics(run, name)]


@pytest.mark.parametrize(
    "loss", ["gone", "empty", "gone, of an earlier version", "empty, of an earlier version"]
)
def test_lost_checkpoints_are_refused_and_nothing_is_touched(run, again, loss):
    shutil.rmtree(run / "checkpoints")
    if loss.startswith("empty"):
        (run / "checkpoints").mkdir()
    if "earlier" in loss:
        (run / "newest.json").unlink()
    before = files_of(run)
    with pytest.raises(NeojaxError) as error:
        again()
    text = str(error.value)
    found = "metrics up to step 6" if "earlier" in loss else "saved a checkpoint at step 6"
    assert found in text and f"its checkpoints/ is {loss.split(',')[0]}" in text
    assert str(run) in text and "train.restart=true" in text and "\n" not in text
    assert files_of(run) == before
    assert "begins anew from step 0 (train.restart)" in again("train.restart=true")
    assert steps_of(run) == list(range(1, 10)) and steps_of(run, "metrics.1.jsonl") == list(range(1, 7))


def test_a_converted_model_whose_weights_are_lost_is_not_trained_from_scratch(run, again):
    """There are no metrics to tell."""
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(NeojaxError, match="saved a checkpoint at step 6, but its checkpoints/ is gone"):
        again()


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff\xfe", b"[6]", b"{}", b'{"step": 1e400}', b'{"step": "6"}', b"[" * 9999]
)
def test_a_damaged_word_of_the_last_checkpoint_does_not_pass_for_none(content, run, again):
    (run / "newest.json").write_bytes(content)
    (run / "metrics.jsonl").unlink()
    (run / "checkpoints").rename(run / "elsewhere")
    with pytest.raises(NeojaxError, match=r"has a damaged newest.json, .* but its checkpoints/ is gone"):
        again()
    (run / "elsewhere").rename(run / "checkpoints")
    if content == b"{":
        assert "resuming" in again()


def test_a_folder_with_nothing_but_a_config_is_begun_with_a_word(settings, tmp_path):
    (tmp_path / "config.yml").write_text("{}")
    said = []
    may_begin(settings(tmp_path), said.append)
    assert len(said) == 1 and "begins from step 0" in said[0]


def test_restart_changes_nothing_where_there_are_checkpoints(run, again):
    assert "resuming" in again("train.restart=true")
    assert steps_of(run) == list(range(1, 10)) and not (run / "metrics.1.jsonl").exists()


class Killed(Exception):
    pass


@pytest.mark.parametrize("ended", [2, 4])
def test_a_run_that_ended_before_its_first_checkpoint_begins_anew_and_says_so(
    ended, settings, tmp_path, monkeypatch, capsys
):
    """Before it was begun, or before it was written."""
    original = MetricsWriter.write

    def killed(self, step, values):
        original(self, step, values)
        if step == ended:
            raise Killed

    run = tmp_path / "run"
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(MetricsWriter, "write", killed)
            patch.setattr(Checkpoints, "save", lambda *_: None)
            train(settings(run, *SMALL, "train.steps=6"))
    capsys.readouterr()
    train(settings(run, *SMALL, "train.steps=6"))
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"begins anew from step 0 (it ended at step {ended} or later, before its first checkpoint)" in said
    assert "the metrics of before are metrics.2.jsonl" in said
    assert steps_of(run) == list(range(1, 7))
    for number in (1, 2):
        assert steps_of(run, f"metrics.{number}.jsonl") == list(range(1, ended + 1))


def test_starts_that_logged_nothing_leave_nothing_behind(settings, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    said = []
    for _ in range(2):
        may_begin(settings(tmp_path), said.append)
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "newest.json"] and not said


def damage(run, step):
    file = max((run / "checkpoints" / str(step) / "params").rglob("d/*"), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def test_a_damaged_checkpoint_stops_the_run_or_is_set_aside(run, again, settings, tmp_path):
    file = damage(run, 6)
    with pytest.raises(NeojaxError) as error:
        again()
    text = str(error.value)
    assert str(file.relative_to(run / "checkpoints" / "6")) in text and "go on from step 3" in text
    assert "train.on_damage=previous" in text and "\n" not in text
    said = again("train.on_damage=previous")
    assert "WARNING: checkpoint 6 is damaged" in said and "6.damaged" in said and "from step 3" in said
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps()[-2:] == [6, 9]
    assert steps_of(run) == list(range(1, 10))
    assert (run / "checkpoints" / "6.damaged").is_dir()
    train(settings(tmp_path / "whole", *SMALL, "train.steps=9"))
    assert [r["loss"] for r in read_metrics(run)] == [r["loss"] for r in read_metrics(tmp_path / "whole")]


def test_where_all_are_damaged_the_run_stops_and_nothing_is_trained_anew(run, again):
    for step in (3, 6):
        damage(run, step)
    with pytest.raises(NeojaxError, match=r"checkpoints/3 is damaged.*to start from the beginning$"):
        again("train.on_damage=previous")
    assert steps_of(run) == list(range(1, 7))


def test_a_newest_checkpoint_that_was_deleted_is_said(run, again):
    shutil.rmtree(run / "checkpoints" / "6")
    assert "the last checkpoint saved, of step 6, is gone: going on from step 3" in again()


def test_a_mount_that_is_gone_does_not_look_like_a_new_run(run, again, monkeypatch):
    real = os.listdir

    def stale(path="."):
        if str(path).endswith("checkpoints"):
            raise OSError(116, "Stale file handle", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(NeojaxError, match=r"Stale file handle.*checkpoints"):
        again()
    assert steps_of(run) == list(range(1, 7))
