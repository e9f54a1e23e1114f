"""`neojax convert` between Hugging Face and run directories: nothing is lost on the way, nothing is half
written."""

import json
from argparse import Namespace

import numpy as np
import pytest
from helpers import tiny

import neojax
from neojax import config as configuration
from neojax.commands import convert as command
from neojax.convert import hf
from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.runs.checkpoint import Checkpoints


def convert(source, dest):
    command.run(
        Namespace(source=str(source), dest=str(dest), config=None, overrides=[], force=False, merge=False)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face directory with a tokenizer."""
    path = tmp_path_factory.mktemp("convert") / "hf"
    model = Transformer(tiny(n_vocab=300)).init(3)
    model.tokenizer = tokenizers.train(["to be or not to be"] * 5, 270)
    model.eos_token_id = 0
    hf.save(model, path)
    return path


def test_there_and_back_is_the_same_directory(folder, tmp_path, capsys):
    convert(folder, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "back")
    assert "sample with: python sample.py" in capsys.readouterr().out
    for file in sorted(folder.iterdir()):
        assert file.read_bytes() == (tmp_path / "back" / file.name).read_bytes(), file.name


def test_a_converted_run_loads_as_its_source_does(folder, tmp_path):
    convert(folder, tmp_path / "run")
    a, b = neojax.load(folder), neojax.load(tmp_path / "run")
    tokens = np.arange(20)[None]
    np.testing.assert_array_equal(np.asarray(a(tokens)), np.asarray(b(tokens)))
    assert b.tokenizer.to_str() == a.tokenizer.to_str()
    assert a.eos_token_id == b.eos_token_id == 0


def test_the_run_directory_is_complete(folder, tmp_path):
    convert(folder, tmp_path / "run")
    config = configuration.load(tmp_path / "run" / "config.yml")
    assert config.model == hf.read_config(folder)
    assert config.train.run_dir == str(tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps() == [0]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_place_in_use_or_a_source_of_no_known_format_is_named(folder, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(NeojaxError, match="used exists already"):
        convert(folder, tmp_path / "used")
    with pytest.raises(NeojaxError, match="used is not of a format that neojax converts"):
        convert(tmp_path / "used", tmp_path / "out")
    for dest in (tmp_path / "out", tmp_path / "used"):  # the source is told of first
        with pytest.raises(NeojaxError, match="nowhere does not exist"):
            convert(tmp_path / "nowhere", dest)
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / "config.json").write_text(
        json.dumps({"model_type": "gpt_neo", "num_layers": 2, "hidden_size": 16})
    )
    with pytest.raises(NeojaxError, match="spoiled has no weights"):
        convert(spoiled, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spoiled", "used"]
