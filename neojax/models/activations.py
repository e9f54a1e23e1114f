"""The non-linearities of the MLP, by gpt-neo's names (`models/activations.py`) and Hugging Face's.

Some have scalars that are trained (`LEARNED`), one set per MLP: keyword arguments of their functions.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# gpt-neo drew a slope (1 - s) / (1 + s), s uniform in [0, 1), whenever a program started; this is their mean.
RRELU_SLOPE = 2 * math.log(2) - 1

# activation -> initial values of its scalars
LEARNED: dict[str, dict[str, float]] = {
    "aria": {"a": 0.0, "k": 1.0, "c": 0.0, "q": 1.0, "b": -1.0, "nu": 0.0},
    "prelu": {"slope": 0.2},
    "parcsinh": {"a": 1.0, "b": 0.0},
    "psoftplus": {"a": 1.0, "b": 1.0, "c": 0.0},
    "proottanh": {"power": 0.0, "add": 0.0, "root": 0.0},
}


def aria(x, a, k, c, q, b, nu):
    """x times Richards' curve, https://arxiv.org/abs/1805.08878; gpt-neo took the root of the exponential
    alone."""
    return x * (a + k / (jax.nn.softplus(c) + q * jnp.exp(b * x / (jax.nn.softplus(nu) + 1))))


def proottanh(x, power, add, root):
    """Of |x|, since a negative number has no broken power."""
    inner = jnp.abs(x) ** (jax.nn.softplus(power) + 2) + jax.nn.softplus(add) + 1
    return inner ** (1 / (jax.nn.softplus(root) + 3)) * jnp.tanh(x)


ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "selu": jax.nn.selu,
    "elu": jax.nn.elu,
    "abs": jnp.abs,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "sign": jnp.sign,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "lrelu001": lambda x: jax.nn.leaky_relu(x, 0.01),
    "lrelu020": lambda x: jax.nn.leaky_relu(x, 0.2),
    "id": lambda x: x,
    "triangle_relax": lambda x: jnp.sin(x) - jnp.sin(3 * x) / 9 + jnp.sin(5 * x) / 25 - jnp.sin(7 * x) / 49,
    "square_relax": lambda x: jnp.cos(x) - jnp.cos(3 * x) / 3 + jnp.cos(5 * x) / 5 - jnp.cos(7 * x) / 7,
    "spike": lambda x: 1 / (1 + x**2),
    "spike2": lambda x: jnp.exp(-(x**2)),
    "tanhshrink": lambda x: x - jnp.tanh(x),
    "softsign": jax.nn.soft_sign,
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "logsoftmax": lambda x: jax.nn.log_softmax(x, axis=-1),
    "bipolarsigmoid": lambda x: 2 * jax.nn.sigmoid(x) - 1,
    "elish": lambda x: jax.nn.sigmoid(x) * jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0))),
    "arcsinh": jnp.arcsinh,
    "maxsig": lambda x: jnp.maximum(x, jax.nn.sigmoid(x)),
    "cosid": lambda x: jnp.cos(x) - x,
    "minsin": lambda x: jnp.minimum(x, jnp.sin(x)),
    "maxtanh": lambda x: jnp.maximum(x, jnp.tanh(x)),
    "mish": jax.nn.mish,
    "tanhexp": lambda x: x * jnp.tanh(jnp.exp(x)),
    "lisht": lambda x: x * jnp.tanh(x),
    "seagull": lambda x: jnp.log1p(x**2),
    "snake": lambda x: x + jnp.sin(x) ** 2,
    "roottanh": lambda x: jnp.cbrt(x**2 + 1) * jnp.tanh(x),
    "softplusmone": lambda x: jax.nn.softplus(x) - 1,
    "rrelu": lambda x: jax.nn.leaky_relu(x, RRELU_SLOPE),
    "aria": aria,
    "prelu": lambda x, slope: jnp.where(x > 0, x, slope * x),
    "parcsinh": lambda x, a, b: a * jnp.arcsinh(x * (jax.nn.softplus(b) + 1)),
    "psoftplus": lambda x, a, b, c: a * jax.nn.softplus(b * x) + c,
    "proottanh": proottanh,
}
