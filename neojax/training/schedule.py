"""The learning rate as a function of the step."""

import jax.numpy as jnp
import optax

from neojax.config import TrainConfig


def learning_rate(train: TrainConfig) -> optax.Schedule:
    """The schedule of `train`: step (0 for the first, int or traced) -> float32 scalar learning rate.

    With w = warmup_steps, p = learning_rate, f = min_lr_ratio * p and d = decay_steps (or steps):

    - warmup, t < w:   p * t / w
    - cosine:          f + (p - f) * (1 + cos(pi * u)) / 2, where u = min(1, (t - w) / (d - w))
    - linear:          p + (f - p) * u
    - constant:        p
    - inverse_sqrt:    p * sqrt(max(w, 1) / max(t, w, 1))
    """
    peak, warmup = train.learning_rate, train.warmup_steps
    span = (train.decay_steps or train.steps) - warmup
    match train.schedule:
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, span, alpha=train.min_lr_ratio)
        case "linear":
            decay = optax.linear_schedule(peak, train.min_lr_ratio * peak, span)
        case "constant":
            decay = optax.constant_schedule(peak)
        case "inverse_sqrt":
            origin = max(warmup, 1)

            def decay(step):
                return peak * jnp.sqrt(origin / jnp.maximum(step + warmup, origin))

    if warmup:
        decay = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])
    return lambda step: jnp.asarray(decay(step), jnp.float32)
