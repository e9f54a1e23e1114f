"""The checkpoint of the best evaluation is kept, a run ends where none gets better, and stopping changes
neither."""

import math
import shutil

import jax
import numpy as np
import pytest

import neojax
from neojax.config import TrainConfig
from neojax.errors import NeojaxError
from neojax.loading import find_run, load_trained
from neojax.runs.checkpoint import Checkpoints
from neojax.training.best import Best
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

# Nothing is learnt, so that no evaluation is better than the first.
FIRST = ("train.best_metric=validation_loss", "train.patience=2", "train.learning_rate=0")
EVERY = ("train.eval_every=2", "train.checkpoint_every=4", "train.keep=1", "train.warmup_steps=0")


def steps_of(run):
    with Checkpoints(run) as checkpoints:
        return checkpoints.steps()


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """A run that was asked for 20 steps, and one that was stopped at the first checkpoint."""
    folder = tmp_path_factory.mktemp("best")
    train(settings(folder / "stopped", *EVERY, *FIRST, "train.steps=4"))
    shutil.copytree(folder / "stopped", folder / "copy")
    train(settings(folder / "run", *EVERY, *FIRST))
    return folder


def test_a_run_ends_after_its_patience_with_the_best_and_the_newest_checkpoint(run, settings, capsys):
    losses = [row["validation_loss"] for row in read_metrics(run / "run") if "validation_loss" in row]
    assert len(losses) == 3 and len(set(losses)) == 1
    assert steps_of(run / "run") == [2, 6]
    assert find_run(run / "run" / "checkpoints" / "best") == (run / "run", 2)
    assert neojax.load(run / "run" / "checkpoints" / "best").params().keys()
    train(settings(run / "run", *EVERY, *FIRST))
    said = " ".join(capsys.readouterr().out.split())
    assert f"is finished at step 6; best validation_loss {losses[0]:.4f} at step 2" in said
    assert "raise train.patience" in said


def test_a_stopped_run_ends_where_one_that_was_not_ends(run, settings):
    train(settings(run / "stopped", *EVERY, *FIRST))
    assert steps_of(run / "stopped") == [2, 6]
    a, b = (load_trained(run / name).params() for name in ("run", "stopped"))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_another_metric_begins_anew(run, settings):
    more = "train.best_metric=validation_perplexity", "train.best_is=highest"
    train(settings(run / "copy", *EVERY, *FIRST, *more, "train.steps=8"))
    assert steps_of(run / "copy") == [6, 8]


@pytest.mark.parametrize(
    "metric, way, values, better",
    [
        ("validation_loss", "auto", [3.0, 2.0, 2.5, 1.95, 1.5], [True, True, False, False, True]),
        ("validation_accuracy", "auto", [0.3, 0.2, 0.5, 0.55, 0.7], [True, False, True, False, True]),
        ("validation_accuracy", "lowest", [0.3, math.nan, 0.1], [True, False, True]),
        ("validation_loss", "auto", [math.nan, 2.0], [False, True]),
    ],
)
def test_what_counts_as_better(metric, way, values, better):
    best = Best(TrainConfig(best_metric=metric, best_is=way, min_gain=0.1, patience=2))
    assert [best.add(step, {metric: value}) for step, value in enumerate(values)] == better
    again = Best(best.train, best.saved())
    assert (again.step, again.value, again.since) == (best.step, best.value, best.since)


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            ["train.patience=2"],
            r"train.patience=2 is for train.best_metric; set that, such as validation_loss",
        ),
        ([*FIRST, "data.validation="], r"best_metric=validation_loss is of evaluations; set data.validation"),
        (
            [*FIRST, "train.eval_every=0"],
            r"compares evaluations, and there is but one, .* set train.eval_every",
        ),
        (
            ["train.best_metric=validaton_loss"],
            r"is no metric of this run's .* did you mean validation_loss\?",
        ),
        (["train.best_metric=validation_f1"], r"validation_f1 is no metric of this run's evaluations; "),
    ],
)
def test_what_does_not_go_together_is_told(keys, message, settings, tmp_path):
    with pytest.raises(NeojaxError, match=message):
        train(settings(tmp_path / "run", *EVERY, "train.steps=2", *keys))
    assert not (tmp_path / "run" / "config.yml").exists()  # before anything is trained


def test_a_run_without_a_best_says_so(whole_run):
    with pytest.raises(
        NeojaxError, match=r"has no best checkpoint: it was trained without train.best_metric"
    ):
        neojax.load(whole_run / "checkpoints" / "best")
