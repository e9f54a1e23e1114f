"""einsum over names computes what the letters would and lays the result out as its names say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of
from jax.sharding import PartitionSpec

from neojax.errors import NeojaxError
from neojax.layout import named
from neojax.layout.named import Constant, Dropout, Normal, Param, einsum

LAYOUT = layout_of("data:2, model:2", "batch:data, heads:model, mlp:model", "embd:data")


def array(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def placed(dims, x, stored=False):
    return jax.device_put(np.asarray(x), LAYOUT.sharding(dims.split(), x.shape, stored=stored))


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_einsum_gathers_parameters_and_lays_out_the_result(jit):
    x, w = array(4, 6, 8), array(8, 16, seed=1)

    def run(x, w):
        with named.use_layout(LAYOUT):
            return einsum("batch sequence embd, embd mlp -> batch sequence mlp", x, w)

    out = jit(run)(placed("batch sequence embd", x), placed("embd mlp", w, stored=True))
    assert out.sharding.spec == PartitionSpec("data", None, "model")
    np.testing.assert_allclose(out, np.einsum("bse,em->bsm", x, w), atol=1e-5)


def test_names_that_travel_together_are_one_dimension_of_the_product():
    """[batch, sequence] and [heads, head_dim] are joined, but not where the mesh splits the second of
    them."""
    x, w = jnp.zeros((4, 6, 8)), jnp.zeros((8, 2, 3))
    equation = "batch sequence embd, embd heads head_dim -> batch sequence heads head_dim"
    ranks = {}
    for layout in ("batch:data", "batch:data, sequence:model"):
        with named.use_layout(layout_of("data:2, model:2", layout)):
            jaxpr = jax.make_jaxpr(lambda x, w: einsum(equation, x, w))(x, w)
        (dot,) = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        ranks[layout] = [v.aval.ndim for v in dot.invars]
    assert ranks == {"batch:data": [2, 2], "batch:data, sequence:model": [3, 2]}


def test_gradients_come_back_as_stored():
    x, w = array(4, 6, 8), array(8, 16, seed=1)

    @jax.jit
    @jax.grad
    def grad(w, x):
        with named.use_layout(LAYOUT):
            return jnp.sum(einsum("batch sequence embd, embd mlp -> batch sequence mlp", x, w) ** 2)

    g = grad(placed("embd mlp", w, stored=True), placed("batch sequence embd", x))
    assert g.sharding.spec == PartitionSpec("data", "model")
    np.testing.assert_allclose(g, np.einsum("bse,bsm->em", x, 2 * np.einsum("bse,em->bsm", x, w)), rtol=1e-4)


def test_parameters_are_computed_with_in_the_type_of_the_first_operand():
    x, w = array(4, 6, 8, dtype=jnp.bfloat16), array(8, 16)
    with named.use_layout(LAYOUT):
        equation = "batch sequence embd, embd mlp -> batch sequence mlp"
        assert einsum(equation, placed("batch sequence embd", x), w).dtype == jnp.bfloat16
        out = einsum(equation, placed("batch sequence embd", x), w, dtype=jnp.float32)
    exact = np.einsum("bse,em->bsm", np.asarray(x, "f8"), np.asarray(w.astype(jnp.bfloat16), "f8"))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=1e-5)


def test_a_result_that_cannot_be_laid_out_names_the_equation():
    with (
        named.use_layout(LAYOUT),
        pytest.raises(NeojaxError, match=r"result of 'embd heads, embd mlp") as error,
    ):
        einsum("embd heads, embd mlp -> heads mlp", array(8, 4), array(8, 4))
    assert "axis model" in str(error.value)


def test_layouts_nest_and_end():
    other = layout_of("data:1")
    with named.use_layout(LAYOUT):
        with named.use_layout(other):
            assert named.current_layout() is other
        assert named.current_layout() is LAYOUT
    with pytest.raises(LookupError):
        named.current_layout()


def test_param_declares_names_sizes_and_stacking():
    sizes = {"embd": 8, "mlp": 32}
    plain = Param("embd mlp", Normal(1.0), sizes)
    stacked = Param("embd mlp", Normal(1.0), {**sizes, "layers": 3})
    assert (plain.dims, plain.get_value().shape) == (("embd", "mlp"), (8, 32))
    assert (stacked.dims, stacked.get_value().shape) == (("layers", "embd", "mlp"), (3, 8, 32))


@pytest.mark.parametrize("init", [Normal(0.5), Constant(2.0)])
def test_initial_values_do_not_depend_on_the_layout(init):
    key = jax.random.key(3)
    values = []
    for layout in (LAYOUT, layout_of("data:1")):
        sharding = layout.sharding(("embd", "mlp"), (8, 16), stored=True)
        values.append(jax.jit(lambda s=sharding: init(key, (8, 16), s), out_shardings=sharding)())
        assert values[-1].sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation_and_the_rate(rate):
    @jax.jit
    def run(x):
        with named.use_layout(LAYOUT):
            return Dropout(rate, jax.random.key(0))(x, "batch sequence embd")

    out = np.asarray(run(placed("batch sequence embd", jnp.ones((64, 32, 32)))))
    assert set(np.unique(out)) <= {np.float32(0), np.float32(1 / (1 - rate))}
    assert np.mean(out == 0) == pytest.approx(rate, abs=0.01)
    assert out.mean() == pytest.approx(1, abs=0.03)
    rows = (out != 0).reshape(64, -1)
    assert len(np.unique(rows, axis=0)) == 64  # every row of the batch, and so every device, draws its own
