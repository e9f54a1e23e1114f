"""What a run leaves behind, and what it refuses."""

import itertools
import math
import shutil

import jax
import numpy as np
import pytest

from neojax import config as configuration
from neojax import loading
from neojax.data.loader import train_batches, validation_batches
from neojax.data.store import StoreWriter
from neojax.data.tokenizer import train as train_tokenizer
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.runs.checkpoint import Checkpoints
from neojax.training import run as run_module
from neojax.training.loop import train
from neojax.training.metrics import read_metrics


def files_of(run):
    return {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()}


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of the finished run, to change."""
    return shutil.copytree(whole_run, tmp_path / "run")


def refused(config, *words):
    with pytest.raises(NeojaxError) as error:
        train(config)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def test_the_run_directory(whole_run, settings):
    rows = read_metrics(whole_run)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"]
    for row in rows:
        assert row["tokens"] == row["step"] * 8 * 16
        assert row["perplexity"] == math.exp(row["loss"])
        assert {"grad_norm", "learning_rate", "tokens_per_second"} <= row.keys()
        assert ("validation_loss" in row) == (row["step"] in (10, 20))
    assert configuration.load(whole_run / "config.yml") == settings(whole_run)
    with Checkpoints(whole_run) as checkpoints:
        assert checkpoints.steps() == [10, 15, 20]  # keep: 3


def test_a_loss_that_is_no_likelihood_has_no_perplexity(settings, tmp_path):
    small = ("train.steps=1", "train.warmup_steps=0", "train.microbatch=8", "model.n_layer=1")
    train(settings(tmp_path / "run", "train.loss=entmax", "model.attention_types=[global]", *small))
    (row,) = read_metrics(tmp_path / "run")
    assert {"loss", "validation_loss"} <= row.keys()
    assert not [name for name in row if "perplexity" in name]


def test_a_run_isolates_documents_in_training_and_validation(settings, tmp_path):
    """Its losses are those of the batches with segments; here of one step that changes nothing."""
    still = [
        "train.steps=1",
        "train.learning_rate=1e-30",
        "model.dropout=0",
        "model.embedding.dropout=0",
        "model.attention.dropout=0",
        "mesh.cpu_devices=1",
        "mesh.shape=data:1",
        "mesh.layout=''",
        "mesh.param_layout=''",
        "train.microbatch=8",
    ]
    config = settings(tmp_path / "run", "data.isolate_documents=true", *still)
    train(config)
    (row,) = read_metrics(tmp_path / "run")
    model = Transformer(config.model).init(config.train.seed)
    batches = {
        "loss": train_batches(config.data, 16, 8, config.train.seed),
        "validation_loss": validation_batches(config.data, config.data.validation[0], 16, 8),
    }
    for name, stream in batches.items():
        losses = [model.loss(batch) for batch in itertools.islice(stream, 1 if name == "loss" else 2)]
        mean = sum(loss.nats for loss in losses) / sum(loss.scored for loss in losses)
        assert row[name] == pytest.approx(float(mean), rel=1e-5)
    train(settings(tmp_path / "other", *still))
    assert abs(read_metrics(tmp_path / "other")[0]["loss"] - row["loss"]) > 1e-4 * row["loss"]


def test_a_finished_run_says_so_and_changes_nothing(whole_run, settings, capsys):
    before = files_of(whole_run)
    train(settings(whole_run))
    assert "is finished: 20 of 20 steps" in " ".join("".join(capsys.readouterr()).split())
    assert files_of(whole_run) == before


def test_a_run_that_is_there_opens_with_an_axis_of_which_a_new_one_is_refused(whole_run, settings, capsys):
    train(settings(whole_run, "mesh.layout=batch:data, experts:model"))
    assert "is finished: 20 of 20 steps" in " ".join("".join(capsys.readouterr()).split())


def test_raising_steps_goes_on(run, settings, capsys):
    train(settings(run, "train.steps=22"))
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 23))
    said = " ".join("".join(capsys.readouterr()).split())
    assert "train.steps (20 -> 22)" in said and "resuming" in said and "from step 20" in said
    assert (
        "global attention: xla, reference (model.attention.dropout" in said
        and said.count("local attention:") == 1
    )


@pytest.mark.parametrize(
    "override, words",
    [
        ("model.n_layer=4", "model.n_layer (2 -> 4)"),
        ("model.res_dropout=0", "model.dropout (0.1 -> 0.0)"),
        ("train.optimizer=adafactor", "train.optimizer (adamw -> adafactor)"),
    ],
)
def test_another_model_or_optimizer_is_refused(override, words, run, settings):
    before = files_of(run)
    refused(settings(run, override, "train.steps=30"), words, "train.run_dir")
    assert files_of(run) == before


def spoilt(monkeypatch, bad, spoil):
    """Lets `spoil` (step function, state, batch, index) stand for the step at the indices `bad`."""
    original = run_module.make_train_step

    def make(*args):
        step = original(*args)

        def run(state, batch, index):
            return spoil(step, state, batch, index) if int(index) in bad else step(state, batch, index)

        return run

    monkeypatch.setattr(run_module, "make_train_step", make)


def skipped(step, state, batch, index):
    """As the step does where its gradient is not finite."""
    return state, {"loss": np.float32(2), "grad_norm": np.float32(math.inf), "learning_rate": np.float32(0)}


def test_a_loss_that_stays_no_number_ends_the_run_with_its_last_good_checkpoint(run, settings):
    diverging = ("train.learning_rate=1e37", "train.steps=60", "train.log_every=3")
    refused(
        settings(run, *diverging, "train.checkpoint_every=1000", "train.max_bad_steps=4"),
        "4 steps in a row",
        "checkpoint is step 20",
        "learning_rate",
    )
    rows = read_metrics(run)
    assert rows[-1]["step"] <= 27 and rows[-1]["skipped"] >= 1
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == 20


def test_no_regular_checkpoint_is_written_among_skipped_steps(run, settings, monkeypatch):
    spoilt(monkeypatch, range(20, 40), skipped)
    changes = "train.steps=40", "train.checkpoint_every=2", "train.max_bad_steps=8"
    refused(settings(run, *changes), "8 steps in a row", "step 20")
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == 20


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_no_checkpoint_holds_infinities(part, run, settings, monkeypatch):
    """Weights and moments can overflow in an update whose loss and gradients were finite."""

    def overflowing(step, state, batch, index):
        state, values = step(state, batch, index)
        saved = state.saved()
        saved[part] = jax.tree.map(lambda x: x * 2.0**127 * 4, saved[part])
        return state.restored(saved), values

    spoilt(monkeypatch, [20], overflowing)
    refused(settings(run, "train.steps=21"), f"{part}/", "after step 21", "not saved", "step 20")
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == 20


def test_skipped_steps_are_told_counted_and_the_same_in_a_resumed_run(
    whole_run, settings, monkeypatch, tmp_path, capsys
):
    """Stopped among skipped steps, some of them not yet logged."""
    bad, changes = [2, 3, 9, 10, 12], ("train.log_every=6", "train.eval_every=0", "train.checkpoint_every=4")
    spoilt(monkeypatch, bad, skipped)
    train(settings(tmp_path / "whole", *changes))
    said = " ".join("".join(capsys.readouterr()).split())
    assert all(f"step {index + 1} was skipped" in said for index in bad)
    train(settings(tmp_path / "parts", *changes, "train.steps=10"))
    train(settings(tmp_path / "parts", *changes))
    rows = {name: {r["step"]: r for r in read_metrics(tmp_path / name)} for name in ("whole", "parts")}
    assert rows["whole"][6]["skipped_steps"] == [3, 4] and rows["whole"][20]["skipped"] == 5
    kept = ("loss", "grad_norm", "learning_rate", "skipped", "skipped_steps", "loss_spikes")
    last = [{k: rows[name][20].get(k) for k in kept} for name in rows]
    assert last[0] == last[1]
    assert rows["whole"][12]["skipped"] == rows["parts"][12]["skipped"] == 4
    assert not [row for row in read_metrics(whole_run) if row["skipped"]]


def test_what_is_wrong_is_refused_before_training(settings, data, tmp_path):
    run = tmp_path / "run"
    refused(settings("''"), "train.run_dir")
    refused(settings(run, "data.train="), "data.train")
    refused(settings(run, "data.train=."), "data.train", "folder")
    refused(settings(run, "data.train=/nowhere"), "/nowhere")
    refused(settings(run, f"data.validation={data / 'absent'}"), "absent")
    with StoreWriter(tmp_path / "empty", 61):
        pass
    refused(settings(run, f"data.validation={tmp_path / 'empty'}"), "empty", "holds 0 tokens")
    refused(settings(run, "model.n_vocab=60"), "holds id 60", "model.n_vocab", "61")
    refused(settings(run, "train.batch_size=6", "train.microbatch=0"), "batch", "size 6", "data")
    refused(settings(run, "train.microbatch=2"), "microbatch of 2", "batch", "data")
    refused(settings(run, "mesh.shape=data:3, model:2"), "mesh.shape", "6", "8")
    refused(settings(run, "mesh.layout=batch:data, heads:modle"), "mesh.layout", "did you mean model")
    refused(settings(run, "mesh.layout=batch:data, haeds:model"), "mesh.layout", "did you mean heads")
    nothing = "mesh.layout=batch:data, experts:model", "mesh.param_layout=axial_rows:model"
    refused(settings(run, *nothing), "axis model (2 parts) experts and axial_rows alone", "does not have")
    refused(settings(run, "model.n_head=1"), "parameter blocks.0.attn", "heads", "size 1")
    refused(settings(run, "train.no_decay=[vocb]"), "train.no_decay", "did you mean vocab")
    refused(settings(run, "train.frozen=[wtee]"), "train.frozen", "did you mean wte")
    refused(settings(run, "train.frozen=['*']"), "train.frozen: * match all", "nothing is left to train")
    refused(settings(run, "train.attention_kernel=splash"), "attention_kernel=splash", "use auto or xla")
    refused(
        settings(run, "train.compiler_options=xla_nonsense=1"), "xla_nonsense=1", "No such compile option"
    )
    refused(settings(run, "data.tokenizer=/nowhere.json"), "data.tokenizer", "/nowhere.json")
    assert not run.exists()


def test_the_tokenizer_travels_with_the_run(settings, tmp_path):
    """From beside the data, into the run directory and the checkpoint; one with too many ids is refused."""
    with StoreWriter(tmp_path / "store", 300) as writer:
        writer.add(np.full(100, 5), np.array([100], np.int32))
    train_tokenizer([], 257).save(str(tmp_path / "tokenizer.json"))
    run = tmp_path / "run"
    common = [f"data.train={tmp_path / 'store'}", "data.validation=[]", "train.steps=1"]
    refused(settings(run, *common), "tokenizer.json", "257", "model.n_vocab=61")
    train(settings(run, *common, "model.n_vocab=257"))
    text = (tmp_path / "tokenizer.json").read_text()
    assert (run / "tokenizer.json").read_text() == text
    with Checkpoints(run) as checkpoints:
        assert checkpoints.restore_meta(1)["tokenizer"] == text
    assert "validation_loss" not in read_metrics(run)[-1]


def test_several_validation_stores_are_told_apart(run, settings, data, tmp_path):
    shutil.copytree(data, tmp_path / "other")
    train(settings(run, f"data.validation=[{data}, {tmp_path / 'other'}]", "train.steps=21"))
    row = read_metrics(run)[-1]
    assert row["validation_other_loss"] == row[f"validation_{data.name}_loss"]


def test_a_run_begins_with_the_weights_of_another(whole_run, settings, tmp_path, capsys):
    origin = f"train.init_from={whole_run / 'checkpoints' / '15'}"
    train(
        settings(tmp_path / "run", origin, "train.steps=1", "train.warmup_steps=0", "train.learning_rate=0")
    )
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"starting from the weights of {whole_run}" in said
    expected, found = (
        loading.load(path).params() for path in (whole_run / "checkpoints" / "15", tmp_path / "run")
    )
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    narrow = "model.attention.heads=4", "model.mlp.width=32"
    refused(
        settings(tmp_path / "other", origin, *narrow),
        "train.init_from=",
        "parameter blocks.0.",
        "leave the keys",
    )
