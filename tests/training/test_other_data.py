"""A run that is resumed with other data or another tokenizer under the same paths says so, or refuses."""

import json
import shutil

import numpy as np
import pytest
from helpers import N_VOCAB, write_data

from neojax.data import fingerprint as fingerprints
from neojax.data.fingerprint import fingerprint
from neojax.data.sources import open_source
from neojax.data.store import StoreWriter
from neojax.data.tokenizer import train as train_tokenizer
from neojax.errors import NeojaxError
from neojax.runs.checkpoint import Checkpoints
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

SMALL = ("model.n_layer=1", "model.attention_types=[global]", "model.n_vocab=300")


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """A folder with `data`, its tokenizer, and `run` of three steps; not to be changed."""
    folder = tmp_path_factory.mktemp("other")
    write_data(folder / "data").joinpath("tokenizer.json").write_text(tokenizer("some text"))
    train(run_of(settings, folder, 3))
    return folder


@pytest.fixture
def again(trained, tmp_path, settings, capsys):
    folder = shutil.copytree(trained, tmp_path / "copy")
    # The paths of the config are the copy's from the first step on.
    shutil.rmtree(folder / "run")
    train(run_of(settings, folder, 3))
    capsys.readouterr()

    def go():
        train(run_of(settings, folder, 5))
        return " ".join("".join(capsys.readouterr()).split())

    return folder, go


def run_of(settings, folder, steps):
    data = folder / "data"
    paths = (f"data.train={data}", f"data.validation={data}", f"train.steps={steps}")
    return settings(folder / "run", *SMALL, *paths)


def tokenizer(text):
    return train_tokenizer([text], 280).to_str()


def test_the_same_data_is_not_remarked_upon(again):
    folder, go = again
    path = folder / "data" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))  # the same, written otherwise
    assert "other data" not in go()


def test_other_data_under_the_same_path_is_said(again):
    folder, go = again
    write_data(folder / "data", 5000)
    said = go()
    for split in ("train", "validation"):
        assert (
            f"data.{split}: {folder}/data holds other data than before (40 documents, 4,000 tokens then; 50 "
            "documents, 5,000 tokens now)"
        ) in said
    assert said.count("documents may be seen twice or not at all") == 1


def test_another_tokenizer_under_the_same_path_is_refused_and_nothing_is_touched(again):
    folder, go = again
    (folder / "data" / "tokenizer.json").write_text(tokenizer("quite another text"))
    before = {f: f.read_bytes() for f in (folder / "run").rglob("*") if f.is_file()}
    with pytest.raises(NeojaxError) as error:
        go()
    assert "another tokenizer" in str(error.value) and f"train.init_from={folder}/run" in str(error.value)
    assert "\n" not in str(error.value)
    assert before == {f: f.read_bytes() for f in (folder / "run").rglob("*") if f.is_file()}


def test_a_tokenizer_that_is_gone_stays_in_the_run(again):
    folder, go = again
    text = (folder / "data" / "tokenizer.json").read_text()
    (folder / "data" / "tokenizer.json").unlink()
    go()
    with Checkpoints(folder / "run") as checkpoints:
        assert checkpoints.latest() == 5 and checkpoints.restore_meta(5)["tokenizer"] == text
    assert len(read_metrics(folder / "run")) == 5


@pytest.mark.parametrize("n_tokens", [0, 1, 999, 4096])
def test_any_token_that_changes_shows_where_all_are_read(n_tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "SPAN", 64)
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, n_tokens)
    seen = {print_of(tmp_path, tokens)}
    places = np.random.default_rng(1).integers(0, n_tokens, 8) if n_tokens else []
    for i in {*np.asarray(places).tolist(), *([0, n_tokens - 1] if n_tokens else [])}:
        changed = tokens.copy()
        changed[i] ^= 1
        seen.add(print_of(tmp_path, changed))
    assert len(seen) == 1 + len({*np.asarray(places).tolist(), *([0, n_tokens - 1] if n_tokens else [])})


def test_a_long_store_is_read_in_spans_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "SPAN", 4)
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, 100_000)
    first = print_of(tmp_path, tokens)
    for i in (0, 3, 99_996, 99_999):
        changed = tokens.copy()
        changed[i] ^= 1
        assert print_of(tmp_path, changed) != first
    assert print_of(tmp_path, np.roll(tokens, 1)) != first
    read = []

    class Counted:
        n_tokens, n_documents = 100_000, 1

        def read(self, start, stop):
            read.append(stop - start)
            return tokens[start:stop]

    assert fingerprint(Counted())["tokens"] == 100_000
    assert sum(read) == 64 * 4


def print_of(folder, tokens):
    with StoreWriter(folder / "store", N_VOCAB + 1) as writer:
        writer.add(tokens, np.array([len(tokens)], np.int32))
    return json.dumps(fingerprint(open_source(folder / "store", "train")))
