"""The state of training: parameters that are trained, parameters that are frozen, and the optimizer's
state."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from neojax.models import Transformer
from neojax.training.optimizer import Optimizer

Params = dict[str, Any]


class State(NamedTuple):
    """A pytree of arrays. Parameters are float32 by name, in their stored layout.

    A step differentiates, clips and updates `trained` alone, and `opt_state` mirrors nothing else; `frozen`
    is used as it is, and comes back in the same memory where the state is donated.
    """

    trained: Params
    frozen: Params
    opt_state: Any

    @property
    def params(self) -> Params:
        """All parameters by name, as `Transformer.bind` takes them."""
        return {**self.trained, **self.frozen}

    def saved(self, is_apart: bool = False) -> dict[str, Any]:
        """What a checkpoint keeps: all parameters together, since what is trained is a matter of the run; of
        a run whose base lies apart (`runs.base`), those that are trained."""
        return {"params": self.trained if is_apart else self.params, "opt_state": self.opt_state}

    def restored(self, saved: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> "State":
        """The state of which a checkpoint kept `saved`, and the run's `base` the frozen parameters where it
        lies apart, if the same ones are frozen as here."""
        params = {**saved["params"], **(base or {})}
        trained, frozen = ({n: params[n] for n in part} for part in (self.trained, self.frozen))
        return State(trained, frozen, saved["opt_state"])


def init_state(model: Transformer, optimizer: Optimizer) -> State:
    """The state before the first step, from the weights bound to `model`, in the stored layout."""
    trained, frozen = optimizer.split(model.params())
    return State(trained, frozen, jax.jit(optimizer.init)(trained))


def abstract_state(model: Transformer, optimizer: Optimizer) -> State:
    """The shapes, types and layouts of the state, without values."""
    trained, frozen = optimizer.split(model.stored())
    return State(trained, frozen, jax.eval_shape(optimizer.init, trained))
