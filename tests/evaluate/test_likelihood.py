"""Sums over held-out documents are those of their log-probabilities, whatever they are read from and however
they are grouped; strided windows are Hugging Face's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tfrecord_writer
from helpers import noisy, tiny

from neojax.convert import hf
from neojax.data.store import StoreWriter
from neojax.data.tokenizer import train
from neojax.errors import NeojaxError
from neojax.evaluate import likelihood
from neojax.evaluate.held_out import Document, Reading, documents
from neojax.evaluate.likelihood import Tally, measure, ratio_error
from neojax.evaluate.score import score
from neojax.evaluate.windows import strided

END = 0
TEXTS = ["the cat sat on the mat. ", "über the dog\tsat on the log " * 6, "the cat"]


@pytest.fixture(scope="module")
def model():
    tokenizer = train(["the cat sat on the mat and the dog sat on the log. " * 3], 270)
    model = noisy(tiny(n_layer=2, n_vocab=tokenizer.get_vocab_size()))
    return model.accompanied(tokenizer, END)


def total(model, data, stride=None, reading=None):
    tally = Tally()
    for found in measure(model, documents(model, str(data), reading or Reading()), stride):
        tally.add(found)
    return tally.row("all")


def numbers(row):
    return {name: value for name, value in row.items() if not isinstance(value, str)}


def write_jsonl(path):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def test_every_measure_is_its_definition_over_the_scores_of_the_texts(model, tmp_path, monkeypatch):
    scores = score(model, TEXTS)
    nats = np.array([-found.logprob for found in scores])
    tokens = np.array([len(found.tokens) for found in scores])
    n_bytes = np.array([len(text.encode()) for text in TEXTS])
    words = np.array([7, 43, 2])  # blanks at the end count one more, as the harness has it
    path = write_jsonl(tmp_path / "texts.jsonl")
    row = total(model, path)
    assert [row[name] for name in ("documents", "tokens", "bytes", "words")] == [
        3,
        tokens.sum(),
        n_bytes.sum(),
        words.sum(),
    ]
    loss = nats.sum() / tokens.sum()
    assert row["nats_per_token"] == pytest.approx(loss, rel=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert row["bits_per_byte"] == pytest.approx(nats.sum() / n_bytes.sum() / math.log(2), rel=1e-6)
    assert row["word_perplexity"] == pytest.approx(math.exp(nats.sum() / words.sum()), rel=1e-5)
    assert row["greedy"] == sum(found.is_greedy.sum() for found in scores) / tokens.sum()
    assert row["nats_per_token_stderr"] == pytest.approx(ratio_error(nats, tokens), rel=1e-4)
    by_byte = ratio_error(nats, n_bytes) / math.log(2)
    assert row["bits_per_byte_stderr"] == pytest.approx(by_byte, rel=1e-4)
    by_word = ratio_error(nats, words) * row["word_perplexity"]
    assert row["word_perplexity_stderr"] == pytest.approx(by_word, rel=1e-4)
    monkeypatch.setattr(likelihood, "GROUP", 1)
    assert numbers(total(model, path)) == pytest.approx(numbers(row), rel=1e-6)


def test_a_store_gives_what_its_text_gives(model, tmp_path):
    with StoreWriter(tmp_path / "store", model.config.n_vocab) as writer:
        for text in TEXTS:
            ids = [*model.tokenizer.encode(text).ids, END]
            writer.add(np.array(ids), np.array([len(ids)]))
    text = total(model, write_jsonl(tmp_path / "texts.jsonl"))
    assert numbers(total(model, tmp_path / "store")) == pytest.approx(numbers(text), rel=1e-6)


def test_examples_of_tfrecords_are_documents(model, tmp_path):
    rows = [[3, 4, 5, 6], [7, 8, 9]]
    tfrecord_writer.write(tmp_path / "a_2_0.tfrecords", rows)
    found = total(model, tmp_path)
    nats = -sum(each.logprob for each in score(model, rows))
    assert found["documents"] == 2 and found["nats_per_token"] == pytest.approx(nats / 7, rel=1e-6)


def test_the_error_of_a_ratio_is_that_of_leaving_one_unit_out_at_a_time():
    rng = np.random.default_rng(0)
    below = rng.integers(50, 150, 400).astype(float)
    above = below * rng.normal(3, 0.5, 400)
    left_out = [(above.sum() - a) / (below.sum() - b) for a, b in zip(above, below)]
    jackknife = math.sqrt(399 / 400 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert ratio_error(above, below) == pytest.approx(jackknife, rel=0.01)
    assert ratio_error(above[:1], below[:1]) is None


@pytest.mark.parametrize(
    "n, stride", [(1, 3), (5, 3), (8, 3), (9, 3), (20, 3), (20, 8), (17, 8), (16, 8), (40, 1)]
)
def test_strided_windows_score_every_token_once_after_as_many_as_the_window_holds(n, stride):
    tokens, n_ctx, seen = list(range(100, 100 + n)), 8, []
    for window in strided(tokens, n_ctx, stride):
        assert len(window.tokens) <= n_ctx and window.scored < len(window.tokens)
        seen += window.tokens[len(window.tokens) - window.scored :]
    first_of_windows = {100} if stride < n_ctx else set(tokens[::n_ctx])
    assert seen == [token for token in tokens if token not in first_of_windows]


@pytest.mark.parametrize("stride", [8, 13, 24])
def test_strided_perplexity_is_that_of_hugging_faces_page(stride, tmp_path):
    """The loop of transformers' `docs/source/en/perplexity.md`, on the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = Path(__file__).parent.parent / "convert" / "data" / "hf" / "gpt2"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model = hf.load(folder)
    n, n_ctx = 101, model.config.n_ctx
    ids = torch.tensor(np.random.default_rng(0).integers(1, model.config.n_vocab, (1, n)))
    nll_sum, n_tokens, before = 0.0, 0, 0
    for begin in range(0, n, stride):
        end = min(begin + n_ctx, n)
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = theirs(ids[:, begin:end], labels=labels).loss
        count = (labels != -100).sum().item() - 1
        if count:  # of a window with a single label, the loss is not a number where that has nothing before
            nll_sum, n_tokens = nll_sum + loss.item() * count, n_tokens + count
        before = end
        if end == n:
            break
    tally = Tally()
    for found in measure(model, [Document("ids", ids.numpy()[0], None, None)], stride):
        tally.add(found)
    assert tally.row("ids")["perplexity"] == pytest.approx(math.exp(nll_sum / n_tokens), rel=1e-5)


def test_what_cannot_be_measured_is_one_line(model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with (
        pytest.warns(UserWarning, match="1 skipped: empty"),
        pytest.raises(NeojaxError, match="all has no token to score"),
    ):
        total(model, tmp_path / "empty.txt")
    (tmp_path / "a.txt").write_text("the cat")
    with pytest.raises(NeojaxError, match="--stride 25: expected 1 to the model's context, 24"):
        total(model, tmp_path / "a.txt", stride=25)
    with StoreWriter(tmp_path / "store", 400) as writer:
        writer.add(np.array([1, 399]), np.array([2]))
    with pytest.raises(NeojaxError, match=f"holds id 399, but the model has {model.config.n_vocab}"):
        total(model, tmp_path / "store")
    with pytest.raises(NeojaxError, match="--wikitext is for"):
        total(model, tmp_path / "store", reading=Reading(wikitext=True))
    (tmp_path / "tokenizer.json").write_text(train(["abcd " * 9], 258).to_str())
    with pytest.raises(NeojaxError, match="made with another tokenizer"):
        total(model, tmp_path / "store")
    with pytest.raises(NeojaxError, match="no tokenizer: give texts as"):
        total(noisy(tiny(n_layer=2)), tmp_path / "a.txt")
    with pytest.raises(NeojaxError, match=r"'.*nowhere' does not exist"):
        total(model, tmp_path / "nowhere")
