"""What a run says, and refuses, when it is resumed with other settings."""

from pathlib import Path

import pytest

from neojax import config as configuration
from neojax.errors import NeojaxError
from neojax.runs.run_dir import check_resume, config_of, meta, use_of

SAVED = configuration.from_dict({})


def resumed(step, *overrides):
    return check_resume(SAVED, configuration.from_dict({}, overrides), Path("runs/a"), step)


def momentum(beta):
    train = {"optimizer": "adafactor", "adafactor_momentum": beta}
    return configuration.from_dict({"train": train})


def test_changed_data_is_said_once_something_was_trained():
    changed, order = resumed(5, "data.train=elsewhere")
    assert "data.train" in changed and "data order differs" in order
    assert resumed(5) == []
    assert resumed(0, "data.train=elsewhere", "train.learning_rate=1") == []  # weights that were converted


@pytest.mark.parametrize("step", [0, 5])
def test_another_optimizer_is_refused_with_the_way_to_keep_the_weights(step):
    with pytest.raises(NeojaxError, match=r"adamw -> adafactor.*train.run_dir=NEW train.init_from=runs/a$"):
        resumed(step, "train.optimizer=adafactor")
    with pytest.raises(NeojaxError, match=r"adafactor_momentum \(0.9 -> 0.0\).*train.init_from=runs/a$"):
        check_resume(momentum(0.9), momentum(0.0), Path("runs/a"), step)
    check_resume(momentum(0.9), momentum(0.5), Path("runs/a"), step)  # the same state
    with pytest.raises(
        NeojaxError, match=r"model.n_layer \(12 -> 6\).*start anew with another train.run_dir$"
    ):
        resumed(step, "model.n_layer=6")


def test_another_model_is_told_by_the_names_of_its_keys():
    with pytest.raises(
        NeojaxError, match=r"model\.attention\.heads \(12 -> 6\), model\.norm\.kind \(layer -> scale\);"
    ):
        resumed(5, "model.n_head=6", "model.scalenorm=true")
    with pytest.raises(NeojaxError, match=r"model\.family \(gpt_neo -> gpt2\)"):
        resumed(5, "model.family=gpt2")


def test_where_a_run_once_began_is_not_told():
    assert resumed(5, "train.init_from=elsewhere") == []


@pytest.mark.parametrize("name", ["format-1", "format-1-gpt2", "format-1-rotary"])
def test_a_run_of_an_earlier_format_goes_on_as_it_was(name):
    """Its checkpoints hold the flat keys, and the command that resumes it may give either spelling."""
    path = Path(__file__).parent.parent / "config" / "data" / f"{name}.yml"
    saved = config_of({"config": configuration.read_yaml(path)}, "checkpoint")
    now = configuration.from_dict(meta(saved, None, None)["config"])
    for config in (configuration.load(path), now):
        assert check_resume(saved, config, Path("runs/a"), 5) == []


def test_what_a_run_is_good_for_is_said_by_its_model():
    def said(**model):
        return use_of(configuration.from_dict({"model": model}).model, "runs/a")

    assert said() == "sample with: python sample.py runs/a"
    assert "neojax fill-mask runs/a" in said(family="bert")
    for kind in configuration.HEADS[3:]:
        assert "neojax predict runs/a" in said(family="bert", head={"kinds": [kind]})
    assert "neojax.load('runs/a')" in said(family="bert", head={"kinds": ["pair"]})
