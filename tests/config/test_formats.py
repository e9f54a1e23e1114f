"""Configurations of earlier formats are read as what they meant; those of later ones are refused.

data/format-1*.yml were written by the last version before the model's keys stood in groups: every flat key
with a value that is not its default, the config of a converted GPT-2, and both of what only one of could be.
"""

from pathlib import Path

import pytest
import yaml

from neojax import config as configuration
from neojax.config import dump, from_dict, load, to_dict
from neojax.config.formats import FORMAT
from neojax.config.spelling import FLAT
from neojax.errors import NeojaxError

DATA = Path(__file__).parent / "data"
NOW = """
model:
  causal: false
  share_parameters: true
  dropout: 0.3
  attention:
    {heads: 8, types: [[[global, local], 6]], window: 7, scale: true, memory_slots: 3, dropout: 0.2}
  mlp: {width: 100, activation: relu, gated: true, macaron: true}
  norm: {kind: scale, epsilon: 0.001}
  positions: {kind: axial, axial: [64, 32]}
  embedding: {tied: false, dropout: 0.1}
  init: {std: 0.02, scale_by_depth: true, scale_by_in: true}
mesh: {shape: "data:4, model:2"}
data: {train: [{path: a, weight: 2}, b]}
train: {run_dir: runs/old, init_from: old/hf, mlm_mask_id: 3, mlm_mask_ignore_ids: [1, 2], unroll: 1}
"""


def test_every_key_of_format_1_is_read_as_what_it_is_now():
    raw = configuration.read_yaml(DATA / "format-1.yml")
    assert raw["model"].keys() - FLAT.keys() == {
        "n_layer",
        "n_embd",
        "n_ctx",
        "n_vocab",
        "causal",
        "share_parameters",
    }
    assert load(DATA / "format-1.yml") == from_dict(yaml.safe_load(NOW))


def test_rezero_and_rotary_won_over_what_stood_beside_them():
    model = load(DATA / "format-1-rotary.yml").model
    assert (model.positions.kind, model.positions.axial, model.norm.kind) == ("rotary", (), "rezero")


@pytest.mark.parametrize("name", ["format-1", "format-1-gpt2", "format-1-rotary"])
def test_what_is_read_of_format_1_is_written_in_todays(name, tmp_path):
    config = load(DATA / f"{name}.yml")
    text = dump(config)
    assert text.startswith(f"format: {FORMAT}\n") and not any(
        f"  {flat}:" in text for flat in FLAT if flat not in SAME
    )
    (tmp_path / "config.yml").write_text(text)
    assert load(tmp_path / "config.yml") == config == from_dict(to_dict(config))


SAME = {
    path.rpartition(".")[2] for path in FLAT.values()
}  # flat names that are those of keys in a group as well


def test_a_converted_gpt2_of_format_1_is_one_still():
    config = load(DATA / "format-1-gpt2.yml")
    small = {
        "family": "gpt2",
        "n_layer": 2,
        "n_embd": 16,
        "n_ctx": 24,
        "n_vocab": 53,
        "attention": {"heads": 4},
    }
    assert config == from_dict({"model": small, "train": {"unroll": 1}})


GPT2 = {"attention_bias": True, "attention_types": ["global"]}


@pytest.mark.parametrize(
    "types", [["global"], "global", "global, global", [[["global"], 12]], [[["global"], 6]] * 2]
)
def test_biased_attention_that_is_all_global_was_gpt2(types):
    model = from_dict({"model": {**GPT2, "attention_types": types}}).model
    assert (model.family, model.attention.scale) == ("gpt2", False)  # scale: the default of then
    for scaled in ({"scale_attention": True}, {"attention": {"scale": True}}):
        assert from_dict({"model": {**GPT2, "attention_types": types, **scaled}}).model.attention.scale


@pytest.mark.parametrize(
    "raw",
    [
        {"model": {**GPT2, "attention_types": ["global", "local"]}},
        {"model": {"attention_bias": True}},
        {"model": {**GPT2, "attention_bias": False}},
        {"model": {**GPT2, "family": "gpt_neo"}},
        {"model": {"attention": {"types": ["global"], "bias": True}}},
        {"model": GPT2, "format": FORMAT},
    ],
)
def test_nothing_else_is_taken_for_gpt2(raw):
    assert from_dict(raw).model.family == "gpt_neo"


@pytest.mark.parametrize(
    "number, words",
    [
        (FORMAT + 1, [f"format {FORMAT + 1} is newer", "upgrade neojax"]),
        (0, ["format: expected a whole number", "got 0"]),
        ("2", ["format: expected a whole number", "got '2'"]),
        (True, ["format: expected a whole number"]),
    ],
)
def test_a_format_that_is_not_known_is_one_line(number, words, tmp_path):
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"format": number, "modle": {}}))
    with pytest.raises(NeojaxError) as error:
        load(tmp_path / "config.yml")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in ["config.yml", *words])


def test_a_list_that_holds_itself_is_refused_in_every_place():
    types: list = []
    types.append(types)
    with pytest.raises(NeojaxError, match=r"model\.attention\.types: expected a list that ends"):
        from_dict({"model": {**GPT2, "attention_types": types}})
