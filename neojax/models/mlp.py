"""The MLP of a block, plain or gated."""

from collections.abc import Mapping

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from neojax.config import ModelConfig
from neojax.layout import named
from neojax.layout.named import Constant, Normal, Param, einsum
from neojax.models.activations import ACTIVATIONS, LEARNED


class MLP(nnx.Module):
    """Two projections with a non-linearity between them, or if gated, up(x) * activation(gate(x)) between.

    Gated units: https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int]):
        std_in = std_out = 0.02
        if config.init.scale_by_in:
            std_in, std_out = std_in * config.n_embd**-0.5, std_out * config.mlp_dim**-0.5
        if config.init.scale_by_depth:
            std_out *= config.n_layer**-0.5
        gated = config.mlp.gated
        self.activation = config.mlp.activation
        scalars = LEARNED.get(self.activation, {})
        self.curve = nnx.Dict({name: Param("", Constant(value), sizes) for name, value in scalars.items()})
        self.up = Param("embd mlp", Normal(std_in), sizes)
        biased = config.mlp.bias
        self.up_bias = Param("mlp", Constant(0.0), sizes) if biased else None
        self.gate = Param("embd mlp", Normal(std_in), sizes) if gated else None
        self.gate_bias = Param("mlp", Constant(0.0), sizes) if gated and biased else None
        self.down = Param("mlp embd", Normal(std_out), sizes)
        self.down_bias = Param("embd", Constant(0.0), sizes) if biased else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(widen(x, self.up, self.up_bias), "mlp_up")
        if self.gate is None:
            y = self.activate(y)
        else:
            gate = checkpoint_name(widen(x, self.gate, self.gate_bias), "mlp_gate")
            y = y * self.activate(gate)
        y = einsum("batch sequence mlp, mlp embd -> batch sequence embd", y, self.down)
        return named.biased(y, self.down_bias, "embd")

    def activate(self, x: jax.Array) -> jax.Array:
        """The activation; the backward pass computes it again from x, which is cheaper than keeping its
        parts. Learned scalars, and what they act on, are float32, as are then the sums over all tokens that
        are their gradients."""
        scalars = {name: named.use(scalar, "") for name, scalar in self.curve.items()}
        return jax.checkpoint(
            lambda x, **scalars: ACTIVATIONS[self.activation](x, **scalars).astype(x.dtype)
        )(x, **scalars)


def widen(x: jax.Array, weight: Param, bias: Param | None) -> jax.Array:
    """x [batch, sequence, embd] -> [batch, sequence, mlp]."""
    y = einsum("batch sequence embd, embd mlp -> batch sequence mlp", x, weight)
    return named.biased(y, bias, "mlp")
