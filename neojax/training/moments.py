"""Going on with the moments that gpt-neo's optimizer left in its checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from neojax.convert.mesh_tf import MeshTF
from neojax.training.adafactor import state_of
from neojax.training.optimizer import make_optimizer
from neojax.training.state import init_state


def opt_state(loaded: MeshTF) -> Any:
    """The state with which the optimizer of its config goes on at its step; without moments they begin at
    zero."""
    dims, n_vocab = loaded.model.dims(), loaded.model.config.n_vocab
    optimizer = make_optimizer(loaded.config.train, dims, n_vocab)
    state = init_state(loaded.model, optimizer).opt_state
    moments = {slot: optimizer.split(by_name)[0] for slot, by_name in loaded.moments.items()}
    count = jnp.int32(loaded.step)
    if loaded.keeps_moments and "squares" in moments:
        factors = jax.jit(lambda squares: state_of(squares, dims, n_vocab, loaded.step))(moments["squares"])
        momentum = {key: value for key, value in moments.items() if key == "ema"}
        return optax.tree.set(state, count=count, **factors._asdict(), **momentum)
    if loaded.keeps_moments:
        scale: Any = state[0]
        kept = {slot: _typed_as(getattr(scale, slot), own) for slot, own in moments.items()}
        return optax.tree.set(state, count=count, **kept)
    # The correction of moments that begin at zero begins anew with them: only the schedule goes on.
    return optax.tree.set(state, lambda path, _: _is_of_schedule(path[-1]), count=count)


def _typed_as(like: dict[str, jax.Array], moments: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: moment.astype(like[name].dtype) for name, moment in moments.items()}


def _is_of_schedule(key: Any) -> bool:
    return getattr(key, "tuple_name", "") == optax.ScaleByScheduleState.__name__
