"""`neojax fill-mask` on a run of masked tokens: what it prints, and what it cannot do is one line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import perturbed, tiny, written_run

import neojax
from neojax.cli import main
from neojax.config import Config, TrainConfig
from neojax.data.tokenizer import train
from neojax.models import Transformer

MASK, FIRST = 270, 271  # beyond the ids of the tokenizer, as gpt-neo's configurations have them


def written(run, causal):
    tokenizer = train(["the cat sat on the mat and the dog sat on the log. " * 3], 270)
    model = tiny(n_layer=2, n_ctx=16, n_vocab=272, causal=causal)
    masked = TrainConfig() if causal else TrainConfig(mlm_mask_id=MASK, mlm_cls_token_id=FIRST)
    config = Config(model=model, train=masked)
    params = perturbed(Transformer(config.model).init(0).params())
    return written_run(run, config, params, tokenizer)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A GPT-Neo that was trained on masked tokens."""
    return written(tmp_path_factory.mktemp("masked"), causal=False)


def test_every_mask_of_every_text_gets_the_likeliest_tokens(run, capsys):
    """As the logits have them, whatever else is in the batch; the blank before a mask belongs to it."""
    texts = ["the [MASK] sat", "[MASK] cat sat on the[MASK]"]
    assert main(["fill-mask", run, *texts, "--top-k", "3", "--json", "mesh.cpu_devices=8"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    objects = [json.loads(line) for line in out.splitlines()]
    assert [each["text"] for each in objects] == texts
    model = neojax.load(run)
    ids = {part: model.tokenizer.encode(part).ids for part in ("the", " sat", " cat sat on the")}
    rows = [[FIRST, *ids["the"], MASK, *ids[" sat"]], [FIRST, MASK, *ids[" cat sat on the"], MASK]]
    for row, found in zip(rows, objects):
        at = [place for place, token in enumerate(row) if token == MASK]
        assert len(found["masks"]) == len(at)
        logits = np.asarray(model(jnp.array([row])), np.float64)[0]
        for place, fillings in zip(at, found["masks"]):
            shares = np.exp(logits[place]) / np.exp(logits[place]).sum()
            order = np.argsort(-shares)[:3]
            assert [f["token"] for f in fillings] == order.tolist()
            np.testing.assert_allclose([f["probability"] for f in fillings], shares[order], rtol=1e-4)
            assert [f["text"] for f in fillings] == [model.tokenizer.decode([token]) for token in order]
    assert all(f["filled"] == f"the{f['text']} sat" for f in objects[0]["masks"][0])
    ids = neojax.fill_mask(model, rows[0], top_k=1)
    assert ids.masks[0][0].token == objects[0]["masks"][0][0]["token"] and ids.masks[0][0].text is None


def test_without_json_it_is_a_table(run, capsys):
    assert main(["fill-mask", run, "the [MASK] sat", "--top-k", "2"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "the [MASK] sat" and len(lines) == 2
    shares = [float(line.split()[0]) for line in lines]
    assert 1 > shares[0] >= shares[1] > 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["the cat sat"], "text 1 has no mask; write [MASK] in the place of the token"),
        (["[MASK]", "--top-k", "0"], "--top-k is 0; expected at least 1"),
        (["[MASK]" + " the cat sat" * 9], "more than the context of 16; shorten it"),
        (["mesh.cpu_devices=8"], "no text is given"),
    ],
)
def test_what_cannot_be_filled_is_one_line(run, words, message, capsys):
    assert main(["fill-mask", run, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_model_that_continues_texts_fills_no_mask(tmp_path, capsys):
    assert main(["fill-mask", written(tmp_path, causal=True), "the [MASK] sat"]) == 2
    assert "model.causal is true: a model trained to continue texts" in capsys.readouterr().err
