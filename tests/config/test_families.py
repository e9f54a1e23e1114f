"""A family gives the keys of its models that a configuration leaves out."""

import pytest

from neojax.config import FAMILIES, Config, describe, from_dict, to_dict
from neojax.errors import NeojaxError


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_speaks_of_keys_that_there_are_and_is_resolved(family):
    config = from_dict({"model": {"family": family}})
    assert config.model.family == family
    assert from_dict({"model": {"family": family, **FAMILIES[family]}}) == config
    assert from_dict(to_dict(config)) == config


def test_a_model_is_gpt_neos_unless_it_says_otherwise():
    assert from_dict({}) == Config() == from_dict({}, ["model.family=gpt_neo"])


def test_what_is_given_stands_before_what_the_family_says():
    attention = from_dict({"model": {"family": "gpt2", "attention": {"scale": False}}}).model.attention
    assert (attention.types, attention.bias, attention.scale) == (("global",), True, False)
    overrides = ["model.attention_types=[local]", "model.family=gpt2"]  # in any order
    for given in (overrides, overrides[::-1]):
        assert from_dict({}, given).model.attention.types == ("local",)


@pytest.mark.parametrize(
    "family, words",
    [
        ("gpt_2", ["did you mean gpt2?"]),
        ("gptneo", ["did you mean gpt_neo?"]),
        ("zzz", []),
        ("[gpt2]", []),
        ("", []),
    ],
)
def test_an_unknown_family_is_one_line_that_lists_them(family, words):
    with pytest.raises(NeojaxError) as error:
        from_dict({}, [f"model.family={family}"])
    text = str(error.value)
    assert "\n" not in text and all(
        word in text for word in ["model.family", f"known: {', '.join(FAMILIES)}", *words]
    )


def test_every_family_is_a_choice_of_the_key():
    kinds = {name: kind for name, kind, *_ in describe()}
    assert kinds["model.family"] == " | ".join(FAMILIES)
