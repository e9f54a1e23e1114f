"""Learning rates of single parameters, as shares of the scheduled one: by depth, and by name or dimension."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from neojax.config import TrainConfig
from neojax.errors import NeojaxError
from neojax.models.selection import Dims, selected

Depths = Mapping[str, tuple[int, ...]]

KEY = "train.rate_factors"


def shares(train: TrainConfig, dims: Dims, depths: Depths | None) -> dict[str, tuple[float, ...]]:
    """Parameter -> its share of the learning rate, or that of each layer along `layers`; those that have the
    whole are left out.

    dims: of the parameters that are trained; depths: of those of the model (`Transformer.depths`), which
    `train.layer_decay` needs. A parameter that stands d layers below the head has layer_decay^d, as in BEiT
    (https://arxiv.org/abs/2106.08254). Raises `NeojaxError` for an entry of `train.rate_factors` that is
    none.
    """
    found: dict[str, tuple[float, ...]] = dict.fromkeys(dims, (1.0,))
    if train.layer_decay != 1:
        assert depths is not None
        head = max(depth for own in depths.values() for depth in own)
        found = {name: tuple(train.layer_decay ** (head - depth) for depth in depths[name]) for name in dims}
    for entry in train.rate_factors:
        which, factor = _parsed(entry)
        for name in selected([which], dims, KEY, what="trained parameter"):
            found[name] = tuple(share * factor for share in found[name])
    return {name: own for name, own in found.items() if set(own) != {1.0}}


def _parsed(entry: str) -> tuple[str, float]:
    which, _, text = entry.rpartition(":")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not which or not 0 <= factor < math.inf:
        raise NeojaxError(
            f"{KEY}: {entry!r}: expected parameters and a factor of at least 0, such as 'classifier.*:10'"
        )
    return which, factor


def scaled(
    transform: optax.GradientTransformation, shares: Mapping[str, tuple[float, ...]]
) -> optax.GradientTransformation:
    """`transform`, whose updates are multiplied by `shares` in the end; its state is as it was, so that a run
    may go on with others."""
    if not shares:
        return transform

    def multiplied(name: str, update: Any) -> Any:
        own = shares.get(name)
        if own is None:
            return update
        if len(own) == 1:
            return update * own[0]
        return update * jnp.asarray(own, update.dtype).reshape(-1, *[1] * (update.ndim - 1))

    def update(grads, state, params=None):
        updates, state = transform.update(grads, state, params)
        return {name: multiplied(name, value) for name, value in updates.items()}, state

    return optax.GradientTransformation(transform.init, update)
