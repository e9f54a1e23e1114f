"""Going on with the moments that gpt-neo's optimizer left in its checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from neojax.convert.mesh_tf import MeshTF
from neojax.training.adafactor import state_of
from neojax.training.optimizer import make_optimizer


def opt_state(loaded: MeshTF) -> Any:
    """The state with which the optimizer of its config goes on at its step; without moments they begin at zero."""
    dims, n_vocab = loaded.model.dims(), loaded.model.config.n_vocab
    state = jax.jit(make_optimizer(loaded.config.train, dims, n_vocab).init)(loaded.model.params())
    count = jnp.int32(loaded.step)
    if loaded.keeps_moments and "squares" in loaded.moments:
        factors = jax.jit(lambda squares: state_of(squares, dims, n_vocab, loaded.step))(
            loaded.moments["squares"]
        )
        momentum = {key: value for key, value in loaded.moments.items() if key == "ema"}
        return optax.tree.set(state, count=count, **factors._asdict(), **momentum)
    if loaded.keeps_moments:
        scale: Any = state[0]
        kept = {slot: _typed_as(getattr(scale, slot), own) for slot, own in loaded.moments.items()}
        return optax.tree.set(state, count=count, **kept)
    # The correction of moments that begin at zero begins anew with them: only the schedule goes on.
    return optax.tree.set(state, lambda path, _: _is_of_schedule(path[-1]), count=count)


def _typed_as(like: dict[str, jax.Array], moments: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: moment.astype(like[name].dtype) for name, moment in moments.items()}


def _is_of_schedule(key: Any) -> bool:
    return getattr(key, "tuple_name", "") == optax.ScaleByScheduleState.__name__
