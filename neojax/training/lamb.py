"""LAMB: Adam's step, made as long as the parameter that it changes, times the learning rate.

You et al. 2019, https://arxiv.org/abs/1904.00962, as ALBERT's code has it: no correction of moments
(`train.bias_correction: false`), decay within the step, and what does not decay keeps Adam's length.
optax's own takes one norm over all stacked layers; here every layer of a stack is a variable, as it was where
layers stood apart, and rows that pad the vocabulary count nowhere.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import optax

from neojax.models.selection import Dims
from neojax.training.true_shape import TrueShape


def scale_by_trust_ratio(
    dims: Dims, scaled: Mapping[str, bool], n_vocab: int | None = None
) -> optax.GradientTransformation:
    """Multiplies the step of every parameter that is `scaled` by the norm of the parameter over the norm of
    the step; by 1 where either is 0. What is beyond `n_vocab` along a `vocab` dimension is padding. The norms
    are of whole variables, wherever their parts are."""

    def update(updates, state, params=None):
        assert params is not None
        found = dict(updates)
        for name, step in updates.items():
            if scaled[name]:
                shape = TrueShape(dims[name], step.shape, n_vocab)
                weight, length = shape.rms(params[name]), shape.rms(step)
                positive = (weight > 0) & (length > 0)
                found[name] = step * jnp.where(positive, weight / jnp.where(positive, length, 1.0), 1.0)
        return found, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
