"""Prompts and settings of every form that is plain are taken; what is of another type is one line, before
anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import N_VOCAB, tiny

import neojax
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.sampling.requests import Sampling, end_ids, listed


@pytest.fixture(scope="module")
def model():
    return Transformer(tiny(n_layer=2)).init(0)


@pytest.mark.parametrize(
    "prompts, found, single",
    [
        ("ab", ["ab"], True),
        (["ab", ""], ["ab", ""], False),
        ([1, 2], [[1, 2]], True),
        (range(2), [[0, 1]], True),
        (np.array([1, 2], np.uint16), [[1, 2]], True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]], False),
        (jnp.array([[1, 2]]), [[1, 2]], False),
        ([np.array([1]), (2, 3), "x"], [[1], [2, 3], "x"], False),
        ([[]], [[]], False),
    ],
)
def test_prompts_are_taken_in_every_plain_form(prompts, found, single):
    assert listed(prompts, N_VOCAB) == (found, single)


def test_ends_are_one_id_or_several():
    assert [end_ids(eos, N_VOCAB) for eos in (3, (), [1, 2], np.int32(3))] == [(3,), (), (1, 2), (3,)]


@pytest.mark.parametrize(
    "prompts, words",
    [
        (b"abc", "prompts is b'abc'; expected a text, a list of token ids"),
        (None, "prompts is None"),
        ({1: 2}, "prompts is {1: 2}"),
        (iter([1]), "prompts is <list_iterator"),
        (5, "prompts is 5"),
        (np.array(5), "prompts is"),
        ([], "no prompt is given"),
        ([b"abc"], "prompt 1 is b'abc'; expected token ids, whole numbers"),
        ([1.0, 2.5], r"the prompt is \[1.0, 2.5\]; expected token ids"),
        (np.ones(3), r"the prompt is float64\[3\]; expected token ids"),
        (["a", [1.5]], r"prompt 2 is \[1.5\]"),
        (["a", None], "prompt 2 is None"),
        ([True, False], "expected token ids"),
        ([[[1, 2]]], "prompt 1"),
        (np.zeros((1, 1, 1), int), r"prompt 1 is int64\[1, 1\]"),
        ([[1], [2**70]], "prompt 2"),
        ([3, 61], "the prompt: token 61 is not in the vocabulary, 0 to 60"),
        ([[1, 2], [-1]], "prompt 2: token -1 is not in the vocabulary"),
        ("a\ud800", "the prompt is not text that UTF-8 can hold: its character 2"),
        (["a", "\udcff"], "prompt 2 is not text that UTF-8"),
    ],
)
def test_prompts_of_another_type_are_one_line(model, prompts, words):
    with pytest.raises(NeojaxError, match=words) as error:
        neojax.generate(model, prompts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("max_new_tokens", 2.5, "2.5; expected a whole number, at least 1"),
        ("max_new_tokens", True, "True; expected a whole number"),
        ("max_new_tokens", "3", "'3'; expected a whole number"),
        ("num_samples", None, "None; expected a whole number"),
        ("top_k", 1.0, "1.0; expected a whole number"),
        ("seed", "x", "'x'; expected a whole number, 0 to"),
        ("temperature", "0.5", "'0.5'; expected a number, 0"),
        ("temperature", None, "None; expected a number"),
        ("top_p", True, "True; expected a number"),
        ("top_p", 1e-50, "1e-50; expected above 0"),
        ("temperature", 1e300, "1e+300; expected 0"),
        ("min_p", [0.1], "[0.1]; expected a number"),
        ("repetition_penalty", 1j, "1j; expected a number"),
        ("entmax", 1, "1; expected True or False"),
        ("return_samples", "yes", "'yes'; expected True or False"),
        ("stop", 5, "5; expected a text or a list of texts"),
        ("stop", None, "None; expected a text"),
        ("eos", "x", "'x'; expected token ids"),
        ("eos", 1.5, "1.5; expected token ids"),
        ("stream", 3, "3; expected a function"),
    ],
)
def test_a_setting_of_another_type_is_one_line(model, name, value, words):
    with pytest.raises(NeojaxError) as error:
        neojax.generate(model, [1], **{name: value})
    assert str(error.value).startswith(f"{name} is {words}")


def test_a_stop_string_must_be_text(model):
    for stop, words in (([5], "stop string 1 is 5"), (["a", "\udcff"], "stop string 2 is not text")):
        with pytest.raises(NeojaxError, match=words):
            neojax.generate(model, [1], stop=stop)
    with pytest.raises(NeojaxError, match="eos: token 99 is not in the vocabulary"):
        neojax.generate(model, [1], eos=99)


def test_numbers_of_numpy_are_numbers():
    found = Sampling(max_new_tokens=np.int64(3), temperature=np.float32(0.5), entmax=np.bool_(True), top_p=1)
    assert (found.max_new_tokens, found.temperature, found.entmax) == (3, 0.5, True)


@pytest.mark.parametrize("other", ["runs/first", None])
def test_what_is_no_model_is_one_line(other):
    with pytest.raises(NeojaxError, match=r"model is .*; expected a model, as neojax.load gives it"):
        neojax.generate(other, "x")


def test_prompts_within_jit_are_one_line(model):
    with pytest.raises(NeojaxError, match=r"the prompt is traced .* call them outside"):
        jax.jit(lambda tokens: neojax.generate(model, tokens))(np.array([1]))


def test_weights_without_one_of_the_parameters_are_one_line(model):
    params = model.params()
    values = {name: value for name, value in params.items() if name != "wpe"}
    with pytest.raises(NeojaxError, match="no parameter wpe"):
        model.bind(values)


def test_a_model_without_weights_says_so():
    abstract = Transformer(tiny())
    for use in (lambda: neojax.generate(abstract, [1]), lambda: abstract(np.zeros((1, 4), int))):
        with pytest.raises(NeojaxError, match="no weights yet"):
            use()


@pytest.mark.parametrize(
    "tokens, words",
    [
        (b"abc", "tokens is b'abc'; expected token ids"),
        ("abc", "tokens is 'abc'"),
        (None, "tokens is None"),
        (np.zeros((1, 4)), r"tokens is float64\[1, 4\]; expected token ids"),
        (jnp.zeros((1, 4)), r"tokens is float32\[1, 4\]"),
        (np.zeros((1, 4), bool), r"tokens is bool\[1, 4\]"),
        ([[1, 2], [3]], "in rows of one length"),
        ([1, 2], r"tokens have shape \[2\]; expected \[batch, sequence\]"),
        (3, r"tokens have shape \[\]"),
    ],
)
def test_tokens_of_another_type_or_shape_are_one_line(model, tokens, words):
    with pytest.raises(NeojaxError, match=words) as error:
        model(tokens)
    assert "\n" not in str(error.value)
