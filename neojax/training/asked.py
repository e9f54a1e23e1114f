"""What a run is asked at its evaluations beside the loss of held-out data. The loop knows no more of it than
this: who asks stands above it (`neojax.evaluate.in_training`)."""

from collections.abc import Callable
from typing import Protocol

from neojax.config import Config
from neojax.errors import NeojaxError
from neojax.models import Transformer


class Asked(Protocol):
    """Questions to a model; `names` are those of the metrics that always come of them."""

    names: list[str]

    def __call__(self, model: Transformer, unless_stopped: Callable[[], None]) -> dict[str, float]:
        """The metrics of `model`. Calls `unless_stopped`, which raises where the run is to stop, now and
        then; all processes of a job as often."""


Asker = Callable[[Config, str | None, int | None], Asked]
"""(configuration, text of tokenizer.json, end-of-document token) -> the questions of a run, read."""


def asked_of(ask: Asker | None, config: Config, tokenizer: str | None, end: int | None) -> Asked | None:
    """What a run is asked; None where train.eval_tasks is empty. Raises `NeojaxError`."""
    if not config.train.eval_tasks:
        return None
    if ask is None:
        raise NeojaxError("train.eval_tasks are asked by neojax.train; call that, not the loop")
    return ask(config, tokenizer, end)
