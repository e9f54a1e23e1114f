"""Encoders trained on pairs of segments of real text, from `prepare` to what metrics say of held-out text."""

import pydoc_data.topics

import numpy as np
import pytest

from neojax import config as configuration
from neojax.data.prepare import prepare
from neojax.data.store import StoreWriter
from neojax.errors import NeojaxError
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

N_VOCAB = 300
HELD_OUT = ("loss", "accuracy", "pair_loss", "pair_accuracy")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Chapters of Python's language reference, which every Python has, with a tokenizer of unigrams."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, text in pydoc_data.topics.topics.items():
        if 4_000 < len(text) < 12_000:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    tokenizer = {"train_tokenizer": N_VOCAB, "tokenizer_kind": "unigram"}
    prepare([folder], folder / "data", **tokenizer, sentences="marks", validation=0.2, workers=1)
    return folder


def run_config(data, run, family, **keys):
    pairs, optimizer = {"bert": ("nsp", "adamw"), "albert": ("sop", "lamb")}[family]
    raw = {
        "model": {"family": family, "n_layer": 2, "n_embd": 16, "n_ctx": 32, "n_vocab": N_VOCAB},
        "mesh": {"shape": "data:4, model:2", "layout": "batch:data, heads:model, mlp:model, vocab:model"},
        "data": {"train": str(data / "data"), "validation": str(data / "data"), "pairs": pairs},
        "train": {
            "run_dir": str(run), "batch_size": 16, "steps": 3, "warmup_steps": 1, "optimizer": optimizer,
            "log_every": 1, "eval_every": 1, "eval_batches": 2, "tensorboard": False, "learning_rate": 0.01,
            "microbatch": 8,
        },
    }  # fmt: skip
    raw["model"] |= {"attention": {"heads": 2}, "mlp": {"width": 32}}
    raw["model"] |= {"embedding": {"width": 8}} if family == "albert" else {}
    return configuration.from_dict(raw, [f"{name}={value}" for name, value in keys.items()])


def test_an_albert_learns_from_sentence_order(data, tmp_path):
    config = run_config(data, tmp_path / "run", "albert")
    assert (config.train.mlm_max_ngram, config.train.mlm_whole_words) == (3, True)
    assert (config.train.mlm_same_token_prob, config.train.mlm_random_token_prob) == (0.1, 0.1)
    train(config)
    rows = read_metrics(tmp_path / "run")
    for name in HELD_OUT:
        assert name in rows[0] and np.isfinite(rows[-1][f"validation_{name}"])
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] - 0.01
    assert rows[0]["pair_loss"] == pytest.approx(np.log(2), abs=0.1)


def test_held_out_pairs_and_masks_are_the_same_at_every_evaluation(data, tmp_path):
    """A BERT that stands still is told the same of itself every time, while what it trains on changes."""
    train(run_config(data, tmp_path / "run", "bert", **{"train.learning_rate": 0.0}))
    rows = read_metrics(tmp_path / "run")
    held_out = [
        {name: row[f"validation_{name}"] for name in HELD_OUT} for row in rows if "validation_loss" in row
    ]
    assert len(held_out) == 3 and held_out[0] == held_out[1] == held_out[2]
    assert len({row["loss"] for row in rows}) == 3
    assert held_out[0]["loss"] == pytest.approx(np.log(N_VOCAB), abs=0.3)
    assert held_out[0]["pair_loss"] == pytest.approx(np.log(2), abs=0.1)


def test_keys_that_do_not_go_with_pairs_are_named(data, tmp_path):
    cases = [
        ("bert", {"train.mlm_mask_id": 4}, "train.mlm_mask_id is told by the tokenizer where data.pairs=nsp"),
        ("bert", {"train.mlm_mask_ignore_ids": "[a]"}, r"train.mlm_mask_ignore_ids=\['a'\]: expected a list"),
        (
            "bert",
            {"data.train": {"path": str(data / "data"), "split": "9,1"}},
            "takes whole stores; leave split out",
        ),
        ("bert", {"data.isolate_documents": "true"}, "a row is one pair; leave data.isolate_documents out"),
        ("bert", {"model.n_ctx": 7}, "model.n_ctx=7 tokens is too short"),
        ("bert", {"data.pairs": "none", "train.mlm_max_ngram": 2}, "train.mlm_max_ngram=2 is for pairs"),
        ("albert", {"train.mlm_random_token_prob": 0.95}, "a share of at most 1"),
        ("albert", {"data.pairs": "sap"}, "data.pairs: 'sap' is not one of its values; did you mean sop"),
        ("albert", {"data.pairs": "none"}, r"no labels for pair; set data.pairs=nsp or sop, or model.head"),
        ("albert", {"model.head.kinds": "[token_classification]"}, "is for the heads mlm and pair"),
    ]
    for family, keys, cause in cases:
        with pytest.raises(NeojaxError, match=cause) as e:
            train(run_config(data, tmp_path / "run", family, **keys))
        assert "\n" not in str(e.value)
    with StoreWriter(tmp_path / "plain", N_VOCAB) as writer:
        writer.add(np.arange(10, 40), np.array([10, 20]))
    with pytest.raises(NeojaxError, match="does not keep where sentences end"):
        train(run_config(data, tmp_path / "run", "albert", **{"data.train": str(tmp_path / "plain")}))
