"""The optimizer: clipping, AdamW, LAMB or Adafactor, and decoupled weight decay by dimension or name.

Optimizer state is made from the parameters by `init`: on an Explicit mesh each moment is stored as its
parameter is, a factored moment as its parameter is without the reduced dimension.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from neojax.config import TrainConfig
from neojax.models.selection import VECTORS, Dims, not_trained, selected
from neojax.training.adafactor import scale_by_adafactor
from neojax.training.lamb import scale_by_trust_ratio
from neojax.training.rates import Depths, scaled, shares
from neojax.training.schedule import learning_rate

Params = dict[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """An optax transformation after clipping by the global norm, of all parameters but those whose names are
    `frozen`.

    Call `init` and `update`, which know nothing of the frozen ones, under `jax.jit`.
    """

    transform: optax.GradientTransformation
    clip_norm: float
    frozen: frozenset[str] = frozenset()

    def split(self, params: Params) -> tuple[Params, Params]:
        """The parameters that are trained, and those that are frozen."""
        trained = {name: value for name, value in params.items() if name not in self.frozen}
        return trained, {name: value for name, value in params.items() if name in self.frozen}

    def init(self, params: Params) -> Any:
        """The optimizer state before the first step, stored as the trained parameters `params` are."""
        return self.transform.init(params)

    def update(
        self,
        grads: Params,
        opt_state: Any,
        params: Params,
        count: jax.Array | float = 1.0,
        loss: jax.Array | float = 0.0,
    ) -> tuple[Params, Any, jax.Array]:
        """One step with the gradients `grads` / `count`: (new parameters, new state, their float32 global
        norm before clipping). The division is done on the way, without a pass over memory of its own. Where
        the norm or `loss` is not finite, parameters and state come back as they were: by a branch, since a
        choice between old and new numbers has XLA hold both."""
        norm = optax.tree.norm(grads) / count
        scale = (jnp.minimum(1.0, self.clip_norm / norm) if self.clip_norm else 1.0) / count

        def step(grads: Params, opt_state: Any, params: Params) -> tuple[Params, Any]:
            grads = {name: g * scale for name, g in grads.items()}
            updates, opt_state = self.transform.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        def skip(grads: Params, opt_state: Any, params: Params) -> tuple[Params, Any]:
            return params, opt_state

        is_good = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, opt_state = jax.lax.cond(is_good, step, skip, grads, opt_state, params)
        return params, opt_state, norm


def make_optimizer(
    train: TrainConfig, dims: Dims, n_vocab: int | None = None, depths: Depths | None = None
) -> Optimizer:
    """The optimizer that `train` asks for, for a model's parameters with these dimension names, of which what
    is beyond `n_vocab` along `vocab` is padding, and which stand at `depths` (see `rates.shares`).

    Weight decay is decoupled and multiplied by the scheduled learning rate (Loshchilov and Hutter 2019).
    Adafactor's learning rate is relative to the RMS of each parameter, so its natural size is about 1e-2; its
    momentum is of the updates before that rate and the decay. LAMB's learning rate is the share of its length
    by which a parameter changes, and parameters that do not decay are changed as by AdamW.
    Raises `NeojaxError` for an entry of `train.no_decay`, `train.rate_factors`, `train.frozen` or
    `train.lora.whole` that matches no parameter, and where all are frozen.
    """
    frozen = not_trained(train, dims)
    decays = {name: decays for name, decays in decay_mask(train.no_decay, dims).items() if name not in frozen}
    if train.optimizer in ("adamw", "lamb"):
        make = optax.scale_by_adam if train.bias_correction else scale_by_uncorrected_adam
        scale = make(train.beta1, train.beta2, train.epsilon, mu_dtype=train.moment_dtype)
    else:
        scale = scale_by_adafactor(
            dict(dims), n_vocab, train.adafactor_decay, train.adafactor_epsilon1, train.adafactor_epsilon2
        )
        if train.adafactor_momentum:
            scale = optax.chain(scale, optax.ema(train.adafactor_momentum, debias=False))
    steps = [scale, optax.add_decayed_weights(train.weight_decay, mask=decays)]
    if train.optimizer == "lamb":
        steps.append(scale_by_trust_ratio(dims, decays, n_vocab))
    transform = optax.chain(*steps, optax.scale_by_learning_rate(learning_rate(train)))
    trained = {name: own for name, own in dims.items() if name not in frozen}
    transform = scaled(transform, shares(train, trained, depths))
    return Optimizer(transform, train.clip_norm, frozen)


def taken(opt_state: Any) -> jax.Array:
    """The number of updates so far, which the schedule counts: int32 scalar."""
    return opt_state[-1].count


def scale_by_uncorrected_adam(
    b1: float, b2: float, eps: float, mu_dtype: str | None = None
) -> optax.GradientTransformation:
    """Adam's direction m / (sqrt(v) + eps) without correcting the moments for their start at zero, as in
    gpt-neo and BERT. Its state is that of `optax.scale_by_adam`, so that either can go on from the other's
    checkpoint."""

    def update(grads, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        directions = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        mu = optax.tree.cast(mu, mu_dtype)
        return directions, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(mu_dtype=mu_dtype).init, update)


def decay_mask(no_decay: tuple[str, ...], dims: Dims) -> dict[str, bool]:
    """Which parameters decay: those that no entry of `no_decay` matches. Raises `NeojaxError` for an entry
    that matches nothing; but a model may have no vectors, which the default leaves out."""
    kept = selected(no_decay, dims, "train.no_decay", may_miss=(VECTORS,))
    return {name: name not in kept for name in dims}
