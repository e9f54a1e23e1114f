"""A model is used as it is whatever mesh is in force, and its logits are an array that ordinary JAX code
takes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, random_tokens, tiny
from jax.sharding import AxisType

import neojax
from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.models import Transformer, compute, transformer

TOKENS = random_tokens(2, 8)
LAYOUTS = {
    "one device": None,
    "a mesh": ("data:2, model:2", "batch:data, vocab:model, mlp:model", "embd:data"),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request):
    layout = LAYOUTS[request.param]
    return Transformer(tiny(n_layer=2), layout and layout_of(*layout)).init(0)


@pytest.fixture(scope="module")
def expected(model):
    """Logits and text where no mesh is in force."""
    return np.asarray(model(TOKENS)), neojax.generate(model, [1, 2], max_new_tokens=3)


def meshes(model):
    yield layout_of("data:8").mesh
    yield jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    yield model.layout.mesh


def uses(logits):
    """What ordinary code does with logits, as numpy arrays."""
    rows = jnp.arange(2)
    found = [
        *jax.lax.top_k(logits, 3), logits[0, -1], logits[rows, jnp.array([1, 2])], logits[:, -1].argmax(-1),
        jax.nn.log_softmax(logits), jnp.take_along_axis(logits, TOKENS[..., None], -1), logits.reshape(16, -1),  # noqa: E501
        logits + jnp.ones(logits.shape), jax.grad(lambda x: jax.nn.logsumexp(x, -1).sum())(logits),
    ]  # fmt: skip
    return [np.asarray(array) for array in found]


def test_ordinary_jax_code_takes_the_logits(model, expected):
    for mine, reference in zip(uses(model(TOKENS)), uses(jnp.asarray(expected[0]))):
        np.testing.assert_allclose(mine, reference, atol=1e-6)


def test_another_mesh_in_force_changes_nothing(model, expected):
    for mesh in meshes(model):
        with jax.set_mesh(mesh):
            logits = model(TOKENS)
            np.testing.assert_array_equal(np.asarray(logits), expected[0])
            np.testing.assert_array_equal(np.asarray(model(jnp.asarray(TOKENS))), expected[0])
            assert neojax.generate(model, [1, 2], max_new_tokens=3) == expected[1]
            if mesh != model.layout.mesh:
                for mine, reference in zip(uses(logits), uses(jnp.asarray(expected[0]))):
                    np.testing.assert_allclose(mine, reference, atol=1e-6)
            assert jax.sharding.get_mesh() == mesh


def test_within_jit_the_models_own_mesh_is_in_force_or_none(model, expected):
    for mesh in (model.layout.mesh, None):
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            for tokens in (TOKENS, jnp.asarray(TOKENS)):
                logits = jax.jit(lambda tokens: model(tokens))(tokens)
                np.testing.assert_allclose(np.asarray(logits), expected[0], atol=1e-6)
            each = jax.vmap(lambda tokens: model(tokens))(np.stack([TOKENS] * 3))
            np.testing.assert_allclose(np.asarray(each[1]), expected[0], atol=1e-6)
    with (
        jax.set_mesh(layout_of("data:8").mesh),
        pytest.raises(
            NeojaxError, match=r"lies on mesh data:.*, but data:8 is in force.*jax.set_mesh.model.layout"
        ),
    ):
        jax.jit(lambda tokens: model(tokens))(TOKENS)


def test_what_is_compiled_depends_on_no_tokenizer(model):
    model(TOKENS)
    size = transformer._jitted._cache_size()
    other = model.bind(model.params())
    other.tokenizer, other.eos_token_id = tokenizers.train(["to be or not"], 260), 0
    other(TOKENS)
    assert transformer._jitted._cache_size() == size
    assert other.tokenizer is not None and other.eos_token_id == 0


def test_the_compute_type_is_that_of_the_layouts_devices(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compute.compute_type("auto", layout_of("data:2")) == jnp.float32
