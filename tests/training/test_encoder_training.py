"""A BERT is trained on masked tokens, leaves for transformers, and begins again with another head."""

import json
import warnings

import numpy as np
import pytest
from helpers import N_VOCAB, write_data

import neojax
from neojax import config as configuration
from neojax.cli import main
from neojax.convert import configs, hf
from neojax.errors import NeojaxError
from neojax.loading import load_params, load_trained
from neojax.models import Transformer
from neojax.training.inputs import check_objective

KEYS = [
    "model.family=bert",
    "model.n_layer=2",
    "model.n_embd=16",
    "model.attention.heads=2",
    "model.n_ctx=16",
    f"model.n_vocab={N_VOCAB}",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps, and the folder that it lies in."""
    folder = tmp_path_factory.mktemp("bert")
    data = write_data(folder / "data", n_tokens=800)
    train = [
        f"data.train={data}",
        f"data.validation={data}",
        "mesh.shape=data:8",
        f"train.run_dir={folder / 'run'}",
        "train.batch_size=8",
        "train.steps=20",
        "train.warmup_steps=2",
        "train.learning_rate=1e-2",
        "train.log_every=1",
        "train.tensorboard=false",
        "train.mlm_mask_id=60",
    ]
    neojax.train(configuration.from_dict({}, [*KEYS, "model.head.kinds=[mlm]", *train]))
    return folder


def test_metrics_hold_loss_and_accuracy_of_what_was_masked(run):
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    assert all(0 <= row["accuracy"] <= 1 for row in rows) and "pair_loss" not in rows[0]
    assert {"validation_loss", "validation_accuracy", "validation_perplexity"} <= rows[-1].keys()
    assert rows[-1]["validation_loss"] == pytest.approx(rows[-1]["loss"], abs=1.0)


def test_a_run_leaves_for_transformers_and_comes_back(run, capsys):
    assert main(["convert", str(run / "run"), str(run / "hf")]) == 0
    raw = json.loads((run / "hf" / "config.json").read_text())
    assert raw["architectures"] == ["BertForMaskedLM"] and "eos_token_id" not in raw
    assert main(["convert", str(run / "hf"), str(run / "again")]) == 0
    before, after = load_trained(run / "run").params(), load_trained(run / "again").params()
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


def test_an_encoder_is_no_source_of_text(run, capsys):
    assert main(["sample", str(run / "run"), "--prompt", "a"]) == 2
    told = capsys.readouterr().err
    assert "model.causal is false" in told and told.count("\n") == 1


def test_a_run_begins_another_with_a_new_head(run):
    """Its config gives the model, all but the head; weights of the head begin at random, by the seed."""
    head = ["model.head.kinds=[sequence_classification]", "model.head.labels=[bad, fine, good]"]
    (run / "tune.yml").write_text(f"train: {{init_from: {run / 'run'}}}")
    config = configs.load(run / "tune.yml", [*head, "train.mlm_mask_id=null"])
    assert (config.model.n_embd, config.model.head.labels) == (16, ("bad", "fine", "good"))
    model = Transformer(config.model)
    told = r"has no classifier\.bias, .*pooler\.weight, which begin at random; it holds mlm\."
    with pytest.warns(UserWarning, match=told):
        params = load_params(run / "run", model)
    trained = load_trained(run / "run").params()
    np.testing.assert_array_equal(params["wte"], trained["wte"])
    logits = model.bind(params)(np.zeros((2, 5), np.int32))
    assert logits.shape == (2, 3) and np.isfinite(logits).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf.save(model.bind(params), run / "tuned")
        assert hf.load(run / "tuned").config.head == config.model.head


@pytest.mark.parametrize(
    "keys, words",
    [
        (["model.head.kinds=[mlm]"], "set train.mlm_mask_id"),
        (["model.head.kinds=[token_classification]"], "no labels for token_classification"),
        (["model.head.kinds=[]"], "leaves nothing to train"),
    ],
)
def test_heads_that_the_data_has_nothing_for_are_refused(keys, words):
    with pytest.raises(NeojaxError, match=words):
        check_objective(configuration.from_dict({}, [*KEYS, *keys]))
