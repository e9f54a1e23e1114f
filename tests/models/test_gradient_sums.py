"""Gradients of bfloat16 compute: sums over tokens are float32, and one key says what type travels between
devices."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, perturbed, random_tokens, tiny

from neojax.data.batch import Batch
from neojax.layout import named
from neojax.layout.named import Normal, Param
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.norms import Gate

LAYOUTS = {
    "one device": ("data:1", "", ""),
    "fsdp": ("data:8", "batch:data", "embd:data"),
    "fsdp and model": ("data:4, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
    "sequence and embd": ("x:2, y:2, z:2", "batch:x, sequence:y, embd:z", "vocab:x"),
}
SIZES = {"vocab": 16, "embd": 8, "mlp": 8}
ROWS, LENGTH = (
    8,
    518,
)  # more tokens than bfloat16 counts to by ones, on a device too, and no number of its 8 bits


def counts(layout, reduce_dtype, use, param):
    """The gradient of the sum of `use(param)` in bfloat16, that is, how often each number was used."""
    spec = layout.sharding(param.dims, param.get_value().shape, stored=True)
    value = jax.device_put(np.ones(param.get_value().shape, np.float32), spec)

    @jax.jit
    def gradient(value):
        def total(value):
            with named.use_layout(layout, reduce_dtype):
                return jnp.sum(use(param.replace(value)), dtype=jnp.float32)

        return jax.grad(total)(value)

    with jax.set_mesh(layout.mesh):
        return gradient(value)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
def test_every_token_counts_in_the_gradient_of_a_row(name, reduce_dtype):
    """Also of the row that most tokens look up, where bfloat16 would stop at 256."""
    layout = layout_of(*LAYOUTS[name])
    index = np.where(np.arange(ROWS * LENGTH) % 40 == 0, 15, 3).astype(np.int32).reshape(ROWS, LENGTH)
    table = Param("vocab embd", Normal(1.0), SIZES)

    def use(table):
        tokens = named.lay(jnp.asarray(index), "batch sequence")
        return named.look_up(table, "vocab embd", tokens, "batch sequence embd", jnp.dtype("bfloat16"))

    found = counts(layout, jnp.dtype(reduce_dtype), use, table)
    assert found.dtype == jnp.float32
    assert found.sharding.spec == layout.sharding(table.dims, stored=True).spec
    expected = np.bincount(index.ravel(), minlength=16)[:, None] * np.ones((1, 8))
    np.testing.assert_allclose(found, expected, rtol=0 if reduce_dtype == "float32" else 2**-8)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
def test_every_token_counts_in_the_gradient_of_a_matrix(name, reduce_dtype):
    """To the last bit where gradients travel in float32."""
    layout = layout_of(*LAYOUTS[name])
    matrix = Param("embd mlp", Normal(1.0), SIZES)

    def use(matrix):
        x = named.lay(jnp.ones((ROWS, LENGTH, 8), jnp.bfloat16), "batch sequence embd")
        return named.einsum("batch sequence embd, embd mlp -> batch sequence mlp", x, matrix)

    found = counts(layout, jnp.dtype(reduce_dtype), use, matrix)
    assert found.sharding.spec == layout.sharding(matrix.dims, stored=True).spec
    np.testing.assert_allclose(found, ROWS * LENGTH, rtol=0 if reduce_dtype == "float32" else 2**-8)
    assert (found == ROWS * LENGTH).all() == (reduce_dtype == "float32")


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["bias", "gate"])
def test_every_token_counts_in_the_gradient_of_what_is_added_or_scales(name, kind):
    """In float32, whatever the type in which matrices' gradients travel."""
    layout = layout_of(*LAYOUTS[name])
    param = Param("mlp", Normal(1.0), SIZES) if kind == "bias" else Gate(SIZES).scale

    def use(param):
        x = named.lay(jnp.ones((ROWS, LENGTH, 8), jnp.bfloat16), "batch sequence mlp")
        if kind == "bias":
            return named.biased(x, param, "mlp")
        return Gate.__call__(SimpleNamespace(scale=param), x)

    found = counts(layout, jnp.dtype("bfloat16"), use, param)
    np.testing.assert_array_equal(found, ROWS * LENGTH * (1 if kind == "bias" else 8))


CONFIG = tiny(n_layer=1, attention_types=("global",), tie_word_embeddings=False)
MATRICES = ("query", "key", "value", "out", "up", "down", "wte", "lm_head")


def gradients(name, dtype, reduce_dtype, config=CONFIG):
    model = Transformer(config, layout_of(*LAYOUTS[name]), Compute(dtype=dtype, reduce_dtype=reduce_dtype))
    params = perturbed(model.init(0).params())

    def loss(params):
        losses = model.bind(params).loss(Batch(random_tokens(), random_tokens(seed=1)))
        nats = losses.nats
        scored = losses.scored
        return nats / scored

    return jax.jit(jax.grad(loss))(params)


def narrow(gradient):
    """Whether all numbers of a gradient are ones of bfloat16."""
    return bool(jnp.all(gradient == gradient.astype(jnp.bfloat16).astype(jnp.float32)))


@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
def test_gradients_of_matrices_travel_in_the_type_that_was_asked_for(reduce_dtype):
    for name, gradient in gradients("one device", "bfloat16", reduce_dtype).items():
        travels_narrow = reduce_dtype == "bfloat16" and name.split(".")[-1] in MATRICES
        assert narrow(gradient) == travels_narrow, name
