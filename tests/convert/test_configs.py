"""With `train.init_from`, what a configuration does not say of the model is as in the model there."""

from pathlib import Path

import pytest

from neojax.config import Config, TrainConfig, dump, from_dict
from neojax.convert import configs
from neojax.convert.hf_config import read_config
from neojax.errors import NeojaxError

GPT2 = Path(__file__).parent / "data" / "hf" / "gpt2"
NEO = GPT2.parent / "gpt-neo"


def load(folder, text, *overrides):
    path = folder / "run.yml"
    path.write_text(text)
    return configs.load(path, overrides)


@pytest.mark.parametrize("origin", [GPT2, NEO], ids=["gpt2", "neo"])
@pytest.mark.parametrize("key", ["train.init_from", "model.init_from"])
def test_the_model_is_the_one_there(origin, key, tmp_path):
    section, _, name = key.partition(".")
    written = load(tmp_path, f"{section}: {{{name}: {origin}}}")
    assert written.model == read_config(origin) and written.train.init_from == str(origin)
    assert load(tmp_path, "", f"{key}={origin}") == written


@pytest.mark.parametrize("given", ["attn_dropout: 0.25", "attention: {dropout: 0.25}"])
def test_what_is_given_stands_before_what_is_there(given, tmp_path):
    model = load(tmp_path, f"model: {{init_from: {GPT2}, {given}}}", "model.n_ctx=12").model
    there = read_config(GPT2)
    assert (model.attention.dropout, model.n_ctx) == (0.25, 12) != (there.attention.dropout, there.n_ctx)
    assert (model.attention.heads, model.attention.scale, model.n_embd) == (4, True, there.n_embd)


def test_a_flag_that_is_off_is_off_in_the_model_there(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yml").write_text(dump(from_dict({"model": {"norm": {"kind": "rezero"}, "n_layer": 2}})))
    assert load(tmp_path, f"train: {{init_from: {run}}}").model.norm.kind == "rezero"
    model = load(tmp_path, f"train: {{init_from: {run}}}\nmodel: {{rezero: false}}").model
    assert (model.norm.kind, model.n_layer) == ("layer", 2)


def test_a_family_other_than_that_of_the_model_there_is_refused(tmp_path):
    with pytest.raises(
        NeojaxError, match=r"model\.family is gpt_neo, but the model of .*gpt2 is a gpt2; leave"
    ):
        load(tmp_path, f"train: {{init_from: {GPT2}}}\nmodel: {{family: gpt_neo}}")
    flat = f"model: {{init_from: {GPT2}, attention_bias: true, attention_types: [global]}}"
    assert load(tmp_path, flat).model == read_config(GPT2)  # of a time when families had no names


@pytest.mark.parametrize("name, words", [("absent", "does not exist"), (".", "is neither a Hugging Face")])
def test_an_origin_that_is_none_is_named(name, words, tmp_path):
    with pytest.raises(NeojaxError, match=rf"^train\.init_from: .* {words}"):
        load(tmp_path, "", f"model.init_from={tmp_path / name}")


def test_without_it_nothing_is_looked_for(tmp_path):
    assert load(tmp_path, "train: {init_from: ''}") == Config()


def test_a_run_goes_on_where_the_weights_that_it_began_with_are_gone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    text = dump(Config(train=TrainConfig(init_from=str(tmp_path / "gone"))))
    (tmp_path / "config.yml").write_text(text)
    assert configs.load(tmp_path / "config.yml").train.init_from == str(tmp_path / "gone")
    (tmp_path / "other.yml").write_text(text)
    with pytest.raises(NeojaxError, match=r"gone does not exist"):
        configs.load(tmp_path / "other.yml")
