"""The learning rate as a function of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from neojax.config import TrainConfig


def learning_rate(train: TrainConfig) -> optax.Schedule:
    """The schedule of `train`: step (0 for the first, int or traced) -> float32 scalar learning rate.

    With w = warmup_steps, p = learning_rate, f = min_lr_ratio * p and d = decay_steps (or steps):

    - warmup, t < w:   p * t / w
    - cosine:          f + (p - f) * (1 + cos(pi * u)) / 2, where u = min(1, (t - w) / (d - w))
    - linear:          p + (f - p) * u
    - linear_to_zero:  max(p * (1 - u), f)
    - exponential:     max(p * exp(-0.693 * u), f), GPT-NeoX's, half of the peak at d
    - constant:        p
    - inverse_sqrt:    p * sqrt(max(w, 1) / max(t, w, 1))

    With warmup_scales_decay (gpt-neo's schedule) the decay runs from step 0, u = min(1, t / d), and its value
    is multiplied by t / w while t < w.
    """
    peak, warmup = train.learning_rate, train.warmup_steps
    span = (train.decay_steps or train.steps) - (0 if train.warmup_scales_decay else warmup)

    def floored(share: Callable[[jax.Array], jax.Array]) -> optax.Schedule:
        return lambda step: peak * jnp.maximum(share(jnp.clip(step / span, 0, 1)), train.min_lr_ratio)

    match train.schedule:
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, span, alpha=train.min_lr_ratio)
        case "linear":
            decay = optax.linear_schedule(peak, train.min_lr_ratio * peak, span)
        case "linear_to_zero":
            decay = floored(lambda u: 1 - u)
        case "exponential":
            decay = floored(lambda u: jnp.exp(-0.693 * u))
        case "constant":
            decay = optax.constant_schedule(peak)
        case "inverse_sqrt":
            origin = max(warmup, 1)

            def decay(step):
                time = step if train.warmup_scales_decay else step + warmup
                return peak * jnp.sqrt(origin / jnp.maximum(time, origin))

    if train.warmup_scales_decay:
        return lambda step: jnp.float32(decay(step) * jnp.minimum(1.0, step / max(warmup, 1)))
    if warmup:
        decay = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])
    return lambda step: jnp.asarray(decay(step), jnp.float32)
