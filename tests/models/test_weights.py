"""Narrow weights: close to the weights they stand for, and the same on every mesh."""

import numpy as np
import pytest
from helpers import layout_of, noisy, perturbed, random_tokens, tiny

import neojax
from neojax.errors import NeojaxError
from neojax.layout import named
from neojax.models import Transformer
from neojax.models.inference import for_inference
from neojax.models.matrices import quantized
from neojax.sampling.generate import generate

MESHES = {
    "model": ("model:4, data:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
    "embd": ("x:2, y:4", "batch:x, embd:y", "embd:x+y"),
}
EVERYTHING = {
    "attention_types": ("global", "local", "linear", "none"),
    "num_mem_kv": 3,
    "mlp_glu": True,
    "macaron": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}
PROMPTS = [[1, 2, 3], [5] * 12, [60, 0, 7, 9, 9, 31, 2], [44]]


def make(config, layout=None):
    model = Transformer(config, layout).init(0)
    return model.bind(perturbed(model.params()))


def relative(found, true):
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def test_quantized_numbers_are_within_half_a_step_of_their_channel():
    value = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    value[:, 2, 3] = 0
    values, scale = quantized(value, (0,))
    assert values.dtype == np.int8 and scale.shape == (1, 4, 6)
    assert np.all(abs(np.asarray(values * scale) - value) <= 0.5001 * np.asarray(scale))


@pytest.mark.parametrize("weights, bound", [("bfloat16", 0.02), ("int8", 0.05)])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_logits_are_close_to_those_of_float32(weights, bound, options):
    model, tokens = make(tiny(**options)), random_tokens(2)
    other = for_inference(model, weights)
    true, found = np.asarray(model(tokens)), np.asarray(other(tokens))
    assert 1e-4 < relative(found, true) < bound


def test_products_with_quantized_weights_are_those_with_the_numbers_they_stand_for():
    model, tokens = make(tiny(**EVERYTHING)), random_tokens(2)
    other = for_inference(model, "int8")
    numbers = {
        name: value.values * value.scale if isinstance(value, named.Quantized) else value
        for name, value in other.params().items()
    }
    assert sum(isinstance(value, named.Quantized) for value in other.params().values()) > 20
    np.testing.assert_allclose(other(tokens), other.bind(numbers)(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("mesh", MESHES)
def test_greedy_text_on_eight_devices_is_that_of_one(weights, mesh):
    one, many = (for_inference(make(tiny(), x), weights) for x in (None, layout_of(*MESHES[mesh])))
    expected = generate(one, PROMPTS, max_new_tokens=12, temperature=0)
    assert generate(many, PROMPTS, max_new_tokens=12, temperature=0) == expected


def test_a_model_that_has_the_form_is_given_back_and_other_names_are_refused():
    model = make(tiny())
    form = for_inference(model)
    assert for_inference(form) is form and for_inference(model) is not model
    with pytest.raises(NeojaxError, match=r"int4.*expected auto, float32, bfloat16 or int8"):
        for_inference(model, "int4")


def test_vocabulary_that_is_split_where_it_is_stored_and_not_where_it_is_used_has_no_padding():
    layout = layout_of("data:2", "batch:data", "vocab:data")
    model = noisy(tiny(n_layer=2), layout)  # 2 parts of an odd vocabulary; what pads it is noise
    assert model.config.n_vocab % 2 and model.params()["wte"].shape[0] == model.config.n_vocab + 1
    used = for_inference(model)
    assert {n: tuple(p.shape) for n, p in used.params().items()} == {
        n: tuple(s.shape) for n, s in used.stored().items()
    }
    plain, text = noisy(tiny(n_layer=2)), [3, 1, 4, 1, 5]
    kept = neojax.score(used, text, [2]).logprobs
    np.testing.assert_allclose(kept, neojax.score(plain, text, [2]).logprobs, atol=1e-5)
    settings = {"max_new_tokens": 4, "temperature": 0, "eos": ()}
    assert neojax.generate(used, text, **settings) == neojax.generate(plain, text, **settings)
