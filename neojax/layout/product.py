"""Products of two arrays in the form that the backend multiplies fastest.

XLA's CPU backend gives bfloat16 matrices to the processor's own bfloat16 instructions (AMX, AVX512-BF16) only
where the result is float32 and the left operand is contracted over its last dimensions; else it widens both
to float32 first, about five times slower with AMX. There, `product` writes bfloat16 products in that form,
their gradients too.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding


def product(
    equation: str,
    left: jax.Array,
    right: jax.Array,
    *,
    dtype: jnp.dtype,
    platform: str,
    out_sharding: NamedSharding | None = None,
) -> jax.Array:
    """`jnp.einsum(equation, left, right)` in `dtype`, which is also the type it is accumulated in, but for
    bfloat16 on the `platform` cpu: there in float32. Every letter of an operand stands in the other one or in
    the result."""
    if platform == "cpu" and left.dtype == right.dtype == jnp.bfloat16:
        return _narrow(equation, jnp.dtype(dtype), out_sharding, left, right)
    return jnp.einsum(equation, left, right, out_sharding=out_sharding, preferred_element_type=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _narrow(
    equation: str, dtype: jnp.dtype, out_sharding: NamedSharding | None, left: jax.Array, right: jax.Array
) -> jax.Array:
    terms, out = equation.split("->")
    a, b = terms.split(",")
    if next((letter in b for letter in out if not (letter in a and letter in b)), False):
        a, b, left, right = b, a, right, left  # einsum would swap them, to leave the result as it comes
    summed = [letter for letter in a if letter not in out]
    order = [letter for letter in a if letter not in summed] + summed
    if order != list(a):
        left = left.transpose([a.index(letter) for letter in order])
        left = with_layout_constraint(
            left, Layout(tuple(range(left.ndim)))
        )  # else it is a view, and that is widened
    equation = f"{''.join(order)},{b}->{out}"
    y = jnp.einsum(equation, left, right, out_sharding=out_sharding, preferred_element_type=jnp.float32)
    return y.astype(dtype)


def _forward(equation, dtype, out_sharding, left, right):
    return _narrow(equation, dtype, out_sharding, left, right), (left, right)


def _backward(equation, dtype, out_sharding, operands, slope):
    terms, out = equation.split("->")
    a, b = terms.split(",")
    left, right = operands
    slope = slope.astype(left.dtype)

    def gradient(equation: str, other: jax.Array, own: jax.Array) -> jax.Array:
        sharding = out_sharding and jax.typeof(own).sharding
        return _narrow(equation, own.dtype, sharding, slope, other)

    return gradient(f"{out},{b}->{a}", right, left), gradient(f"{out},{a}->{b}", left, right)


_narrow.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def product_with_weight(
    equation: str,
    dtype: jnp.dtype,
    platform: str,
    out_sharding: NamedSharding,
    summed_dtype: jnp.dtype,
    left: jax.Array,
    weight: jax.Array,
    summed: jax.Array,
) -> jax.Array:
    """`product` of `left` and `weight`, whose gradient goes to `summed`, a stand-in of its shape and layout,
    and is made in its type, `summed_dtype`: JAX's own rule gives the gradient of a bfloat16 weight in
    bfloat16, and so would it be added up over the devices."""
    return product(equation, left, weight, dtype=dtype, platform=platform, out_sharding=out_sharding)


@jax.custom_vjp
def standing_for(used: jax.Array, stand_in: jax.Array) -> jax.Array:
    """`used`, whose gradient goes to `stand_in`, in the type of that (see `named.trained`)."""
    return used


def _standing_forward(used: jax.Array, stand_in: jax.Array):
    return used, jnp.zeros((0,), stand_in.dtype)  # says the type


def _standing_backward(kept: jax.Array, slope: jax.Array):
    return None, slope.astype(kept.dtype)


standing_for.defvjp(_standing_forward, _standing_backward)


def _weight_forward(equation, dtype, platform, out_sharding, summed_dtype, left, weight, summed):
    y = product(equation, left, weight, dtype=dtype, platform=platform, out_sharding=out_sharding)
    return y, (left, weight)


def _weight_backward(equation, dtype, platform, out_sharding, summed_dtype, operands, slope):
    terms, out = equation.split("->")
    a, b = terms.split(",")
    left, weight = operands
    slope = slope.astype(left.dtype)

    def gradient(equation: str, other: jax.Array, own: jax.Array, dtype: jnp.dtype) -> jax.Array:
        sharding = jax.typeof(own).sharding
        return product(equation, slope, other, dtype=dtype, platform=platform, out_sharding=sharding)

    return (
        gradient(f"{out},{b}->{a}", weight, left, left.dtype),
        None,
        gradient(f"{out},{a}->{b}", left, weight, summed_dtype),
    )


product_with_weight.defvjp(_weight_forward, _weight_backward)
