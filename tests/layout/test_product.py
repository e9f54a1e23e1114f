"""Products of bfloat16 on CPU: the same numbers as einsum's, rounded once, and gradients likewise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neojax.layout.product import product

SIZES = {"b": 2, "h": 3, "q": 8, "k": 16, "d": 32, "t": 24, "e": 40, "v": 56}
EQUATIONS = [
    "te,ev->tv",
    "te,ve->tv",
    "tv,te->ve",  # contracted over the first dimension of both
    "tv,te->ev",  # the right operand's dimension first
    "bqhd,bkhd->bhqk",
    "bhqk,bkhd->bqhd",
    "te,hde->thd",
    "thd,hde->te",
]


def operands(equation: str, dtype) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    terms = equation.split("->")[0].split(",")
    return [
        jnp.asarray(rng.normal(size=[SIZES[c] for c in term]), jnp.bfloat16).astype(dtype) for term in terms
    ]


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_as_einsum_in_float32(equation, dtype):
    """Result and gradients are those of float32, but for one rounding to their type."""

    def ours(left, right):
        return product(equation, left, right, dtype=dtype, platform="cpu")

    def exact(left, right):
        return jnp.einsum(equation, left, right, precision="highest")

    y, pull = jax.vjp(ours, *operands(equation, jnp.bfloat16))
    expected, expected_pull = jax.vjp(exact, *operands(equation, jnp.float32))
    assert y.dtype == dtype
    slope = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.bfloat16)
    found = [y, *pull(slope.astype(dtype))]
    wanted = [expected, *expected_pull(slope.astype(jnp.float32))]
    assert [x.dtype for x in found[1:]] == [jnp.bfloat16] * 2
    for x, reference in zip(found, wanted):
        np.testing.assert_allclose(x.astype(jnp.float32), reference, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    "dtype, platform", [(jnp.float32, "cpu"), (jnp.bfloat16, "gpu"), (jnp.bfloat16, "tpu")]
)
def test_other_types_and_platforms_are_left_alone(dtype, platform):
    """float32 operands, and other platforms, get einsum itself: no conversion, no layout asked for."""
    equation = "tv,te->ve"
    ours = jax.make_jaxpr(lambda left, right: product(equation, left, right, dtype=dtype, platform=platform))
    plain = jax.make_jaxpr(
        lambda left, right: jnp.einsum(equation, left, right, preferred_element_type=dtype)
    )
    assert str(ours(*operands(equation, dtype))) == str(plain(*operands(equation, dtype)))
