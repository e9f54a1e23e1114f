"""A run that is asked tasks logs what its checkpoint answers afterwards, on a mesh as on one device."""

import json

import numpy as np
import pytest

import neojax
from neojax import config as configuration
from neojax.data.store import StoreWriter
from neojax.data.tokenizer import train as train_tokenizer
from neojax.errors import NeojaxError
from neojax.evaluate.local_tasks import Local, evaluate
from neojax.training import loop
from neojax.training.metrics import read_metrics

TEXT = "the cat sat on the mat and the dog sat on the log. " * 20


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Makes a config from overrides; data, tasks and runs lie in one folder."""
    folder = tmp_path_factory.mktemp("asked")
    tokenizer = train_tokenizer([TEXT], 270)
    ids = [*tokenizer.encode(TEXT).ids, 0] * 4
    with StoreWriter(folder / "train", 270) as writer:
        writer.add(np.array(ids), np.array([len(ids)]))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "sst2.txt").write_text("1 the cat\n0 the dog sat\n1 the mat\n0 on\n")
    (folder / "lambada.txt").write_text("the cat sat on the mat\nthe dog sat on the log\n")
    (folder / "pairs.csv").write_text("sent_more,sent_less\nthe cat,the dog\na cat,a dog\n")
    raw = {
        "model": {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_ctx": 32, "n_vocab": 270, "window_size": 5},
        "mesh": {
            "cpu_devices": 8,
            "shape": "data:4, model:2",
            "param_layout": "embd:data",
            "layout": "batch:data, heads:model, mlp:model, vocab:model",
        },
        "data": {"train": str(folder / "train")},
        "train": {"batch_size": 8, "steps": 4, "eval_every": 2, "log_every": 1, "warmup_steps": 1},
    }

    def make(*overrides):
        return folder, configuration.from_dict(raw, [f"train.run_dir={folder / 'run'}", *overrides])

    return make


def tasks_of(folder):
    return {"sst2": "sst2.txt", "lambada": "lambada.txt", "crows_pairs": "pairs.csv"}.items(), folder


@pytest.mark.slow
def test_metrics_and_tensorboard_have_what_the_checkpoint_answers(settings):
    folder, _ = settings()
    named = [f"{name}={folder / file}" for name, file in tasks_of(folder)[0]]
    folder, config = settings(f"train.eval_tasks={json.dumps(named)}", "train.eval_tasks_limit=3")
    neojax.train(config)
    rows = {row["step"]: row for row in read_metrics(folder / "run")}
    assert [("sst2_acc" in row) for row in rows.values()] == [False, True, False, True]
    model = neojax.load(folder / "run", dtype="float32")
    for name, file in tasks_of(folder)[0]:
        found = evaluate(model, Local(name, str(folder / file)), limit=3)[-1]
        logged = {key: value for key, value in rows[4].items() if key.startswith(f"{name}_")}
        assert logged and all("stderr" not in key for key in logged)
        for key, value in logged.items():
            assert value == pytest.approx(found[key.removeprefix(f"{name}_")], rel=1e-4), key
    events = next((folder / "run" / "tensorboard").iterdir()).read_bytes()
    assert b"lambada_perplexity" in events and b"crows_pairs_nats_more" in events


def test_what_a_run_cannot_be_asked_is_one_line_before_it_begins(settings, tmp_path):
    folder, _ = settings()
    sst2 = f"sst2={folder / 'sst2.txt'}"
    encoder = ("model.causal=false", "train.mlm_mask_id=5")
    for overrides, words in (
        ([f"train.eval_tasks=[{sst2}, {sst2}]"], "has sst2 twice"),
        (["train.eval_tasks=[sst3=a]"], "is called sst3; did you mean sst2"),
        ([f"train.eval_tasks=[sst2={tmp_path / 'none.txt'}]"], "cannot read"),
        (
            [f"train.eval_tasks=[{sst2}]", "train.eval_tasks_fewshot=4"],
            "4 examples are asked for, and 4 rows",
        ),
        ([f"train.eval_tasks=[{sst2}]", *encoder], "are for models that continue texts"),
    ):
        _, config = settings(*overrides)
        with pytest.raises(NeojaxError, match=words):
            neojax.train(config)
    with pytest.raises(NeojaxError, match=r"are asked by neojax\.train"):
        loop.train(settings(f"train.eval_tasks=[{sst2}]")[1])
