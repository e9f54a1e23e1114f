"""gpt-neo's flat names of the model's keys are read into the groups, from files and from the command line."""

import pytest

from neojax.config import describe, from_dict, value_at
from neojax.config.families import FAMILIES
from neojax.config.spelling import FLAT, KINDS
from neojax.errors import NeojaxError

# A value of each flat key that is not its default, and what it is read as where that is another.
VALUES = {
    "n_head": 6, "attention_types": ["local"], "window_size": 7, "attention_bias": True, "scale_attention": True,  # noqa: E501
    "num_mem_kv": 3, "attn_dropout": 0.2, "n_inner": 100, "activation_function": "relu", "mlp_glu": True,
    "macaron": True, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False, "embed_dropout": 0.1,
    "res_dropout": 0.3, "initializer_range": 0.02, "scale_by_depth": True, "scale_by_in": True, "init_from": "hf",  # noqa: E501
    "scalenorm": True, "rezero": True, "axial_pos_emb": [64, 32], "rotary_emb": True,
}  # fmt: skip
READ = {
    "attention_types": ("local",),
    "scalenorm": "scale",
    "rezero": "rezero",
    "axial_pos_emb": "axial",
    "rotary_emb": "rotary",
}


def refused(*args):
    """The message of the error, one line."""
    with pytest.raises(NeojaxError) as error:
        from_dict(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def model(raw=None, *overrides):
    return from_dict({} if raw is None else {"model": raw}, overrides).model


def test_every_flat_name_is_one_of_a_key():
    assert set(FLAT.values()) <= {name for name, *_ in describe()}
    assert VALUES.keys() == FLAT.keys() and KINDS.keys() <= FLAT.keys()


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_name_is_read_into_its_group(name):
    value, path = VALUES[name], FLAT[name]
    expected = READ.get(name, value)
    assert value_at(from_dict({}), path) != expected
    in_file = from_dict({"model": {name: value}})
    assert value_at(in_file, path) == expected
    assert from_dict({}, [f"model.{name}={value}"]) == in_file
    grouped = f"{path}={value if name not in KINDS else expected}"
    more = ["model.positions.axial=[64, 32]"] if name == "axial_pos_emb" else []
    assert from_dict({}, [*more, grouped]) == in_file


@pytest.mark.parametrize("name", FLAT)
def test_both_spellings_in_one_mapping_are_refused(name):
    path, raw = FLAT[name], {"model": {name: VALUES[name]}, "train": {}}
    section, *groups, key = path.split(".")
    inner = raw[section]
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[key] = VALUES[name]
    text = refused(raw, [], "run.yml")
    assert "run.yml" in text and f"model.{name} and {path}" in text


def test_both_spellings_of_axial_positions_are_refused():
    for name in ("axial_pos_emb", "rotary_emb"):
        raw = {"model": {name: VALUES[name], "positions": {"axial": [64, 32]}}}
        assert f"model.{name} and model.positions.axial" in refused(raw)


@pytest.mark.parametrize(
    "raw, override",
    [
        ({"attention": {"heads": 4}}, "model.n_head=8"),
        ({"n_head": 4}, "model.attention.heads=8"),
        ({"n_head": 4}, "model.n_head=8"),
        ({"attention": {"heads": 4}}, "model.attention={heads: 8}"),
    ],
)
def test_what_comes_last_wins_in_either_spelling(raw, override):
    raw.setdefault("attention", {})["window"] = 9
    assert (model(raw).attention.heads, model(raw).attention.window) == (4, 9)
    assert (model(raw, override).attention.heads, model(raw, override).attention.window) == (8, 9)
    assert model(raw, override, "model.n_head=2", "model.attention.heads=3").attention.heads == 3


@pytest.mark.parametrize(
    "raw, overrides, norm",
    [
        ({"scalenorm": True, "rezero": True}, [], "rezero"),
        ({"rezero": False, "scalenorm": True}, [], "scale"),
        ({"scalenorm": True}, ["model.rezero=false"], "scale"),
        ({"scalenorm": True}, ["model.scalenorm=false"], "layer"),
        ({"norm": {"kind": "rezero"}}, ["model.rezero=false"], "layer"),
        ({"norm": {"kind": "rezero"}}, ["model.scalenorm=false"], "rezero"),
        ({"norm": {"kind": "rezero"}}, ["model.scalenorm=true"], "scale"),
        ({"rezero": True}, ["model.norm.kind=scale"], "scale"),
    ],
)
def test_a_flag_that_is_off_turns_only_its_own_kind_off(raw, overrides, norm):
    assert model(raw, *overrides).norm.kind == norm


AXIAL = {"axial_pos_emb": [64, 32]}


@pytest.mark.parametrize(
    "raw, overrides, kind, axial",
    [
        ({**AXIAL, "rotary_emb": True}, [], "rotary", ()),
        ({**AXIAL, "rotary_emb": False}, [], "axial", (64, 32)),
        ({"axial_pos_emb": [], "rotary_emb": True}, [], "rotary", ()),
        (AXIAL, ["model.rotary_emb=true"], "rotary", ()),
        (AXIAL, ["model.rotary_emb=false"], "axial", (64, 32)),
        (AXIAL, ["model.axial_pos_emb=[]"], "learned", ()),
        (AXIAL, ["model.positions.axial=[32, 64]"], "axial", (32, 64)),
        ({"positions": {"kind": "rotary"}}, ["model.axial_pos_emb=[64, 32]"], "axial", (64, 32)),
        ({"positions": {"kind": "rotary"}}, ["model.axial_pos_emb=[]"], "rotary", ()),
    ],
)
def test_axial_and_rotary_positions(raw, overrides, kind, axial):
    positions = model(raw, *overrides).positions
    assert (positions.kind, positions.axial) == (kind, axial)


def test_features_to_rotate_belong_to_rotary_positions():
    text = refused({"model": {"positions": {"rotary_dims": 8}}})
    assert "model.positions.rotary_dims=8 is for model.positions.kind=rotary, which is learned" in text
    assert model({"positions": {"kind": "rotary", "rotary_dims": 8}}).positions.rotary_dims == 8


def test_a_flag_of_a_familys_own_kind_turns_it_off(monkeypatch):
    monkeypatch.setitem(FAMILIES, "gpt_neo", {"positions": {"kind": "rotary"}})
    assert model().positions.kind == "rotary"
    assert model({"rotary_emb": False}).positions.kind == "learned"


@pytest.mark.parametrize("name", ["scalenorm", "rezero", "rotary_emb"])
@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_flag_is_true_or_false(name, value):
    assert f"model.{name}: expected true or false" in refused({"model": {name: value}})


def test_null_for_a_group_is_as_if_it_were_not_there():
    assert model({"family": "gpt2", "attention": None}) == model({"family": "gpt2"})
    assert model({"attention": {"heads": 6}}, "model.attention=null").attention.heads == 6
