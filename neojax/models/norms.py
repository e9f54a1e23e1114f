"""What stands before a branch of a block (normalisation) and after it (a gate), chosen by the config.

Facts: gpt-neo's `layer_norm`, `scale_norm` and `rezero`.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.config import ModelConfig
from neojax.layout import named
from neojax.layout.named import Constant, Param


class Identity(nnx.Module):
    """x."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over `dim`, the last one, computed in float32."""

    def __init__(self, epsilon: float, sizes: Mapping[str, int], dim: str = "embd"):
        self.epsilon = epsilon
        self.dim = dim
        self.scale = Param(dim, Constant(1.0), sizes)
        self.bias = Param(dim, Constant(0.0), sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = standardise(x, self.epsilon)
        return (y * named.use(self.scale, self.dim) + named.use(self.bias, self.dim)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean of x^2 + epsilon) * scale over embd, computed in float32. https://arxiv.org/abs/1910.07467"""

    def __init__(self, epsilon: float, sizes: Mapping[str, int]):
        self.epsilon = epsilon
        self.scale = Param("embd", Constant(1.0), sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        return (of_unit_size(x, self.epsilon) * named.use(self.scale, "embd")).astype(x.dtype)


class ScaleNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale with one number as scale, computed in float32.

    This is gpt-neo's `scalenorm`; the paper of that name (Nguyen and Salazar 2019) does not subtract the
    mean.
    """

    def __init__(self, epsilon: float, sizes: Mapping[str, int]):
        self.epsilon = epsilon
        self.scale = Param("", Constant(1.0), sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        return (standardise(x, self.epsilon) * named.use(self.scale, "")).astype(x.dtype)


class Gate(nnx.Module):
    """x times one learned number that starts at 0: ReZero, https://arxiv.org/abs/2003.04887."""

    def __init__(self, sizes: Mapping[str, int]):
        self.scale = Param("", Constant(0.0), sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.checkpoint(_scaled)(x, named.use(self.scale, ""))


def _scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    return (x * scale).astype(x.dtype)


@partial(jax.checkpoint, static_argnums=1)
def standardise(x: jax.Array, epsilon: float) -> jax.Array:
    """x in float32 with mean 0 and variance 1 over its last dimension; nothing but x is kept for the backward
    pass."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)


@partial(jax.checkpoint, static_argnums=1)
def of_unit_size(x: jax.Array, epsilon: float) -> jax.Array:
    """x in float32 with mean square 1 over its last dimension; nothing but x is kept for the backward
    pass."""
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)


def branch_norm(config: ModelConfig, sizes: Mapping[str, int]) -> Identity | LayerNorm | RMSNorm | ScaleNorm:
    """The normalisation of a branch; ReZero needs none."""
    if config.norm.kind == "rezero":
        return Identity()
    if config.norm.kind == "scale":
        return ScaleNorm(config.norm.epsilon, sizes)
    return final_norm(config, sizes)


def final_norm(config: ModelConfig, sizes: Mapping[str, int]) -> LayerNorm | RMSNorm:
    """The normalisation after the last block, which gpt-neo's other kinds do as `layer`."""
    kind = RMSNorm if config.norm.kind == "rms" else LayerNorm
    return kind(config.norm.epsilon, sizes)


def branch_gate(config: ModelConfig, sizes: Mapping[str, int]) -> Identity | Gate:
    """What a branch's output goes through before it is added."""
    return Gate(sizes) if config.norm.kind == "rezero" else Identity()
