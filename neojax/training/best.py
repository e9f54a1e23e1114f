"""The best evaluation of a run by one metric: its checkpoint is kept, and a run may end where none beats
it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neojax.config import TrainConfig
from neojax.errors import NeojaxError, suggest

FALLING = ("loss", "perplexity", "nats", "bits")
"""How the names of metrics end of which less is better."""


class Best:
    """Follows `train.best_metric` over the evaluations of a run: the `step` and `value` of the best one, and
    how many have come `since`. All of it is saved with a checkpoint (`saved`), so that a resumed run goes on
    as one that was never stopped."""

    def __init__(self, train: TrainConfig, saved: Mapping[str, Any] | None = None):
        self.metric, self.train = train.best_metric, train
        own = saved if saved and saved["metric"] == self.metric else {}
        self.step: int | None = own.get("step")
        self.value: float | None = own.get("value")
        self.since: int = own.get("since", 0)
        falls = train.best_is == "lowest" or (train.best_is == "auto" and self.metric.endswith(FALLING))
        self._sign = -1 if falls else 1

    def check(self, names: Sequence[str]) -> None:
        """Raises `NeojaxError` where the metric is none of `names`, those of the run's evaluations."""
        if self.metric and self.metric not in names:
            raise NeojaxError(
                f"train.best_metric={self.metric} is no metric of this run's evaluations"
                f"{suggest(self.metric, names)}"
            )

    def add(self, step: int, row: Mapping[str, Any]) -> bool:
        """Takes the metrics of the evaluation at `step`; whether they are the best so far. Raises
        `NeojaxError` where the metric is not there."""
        if not self.metric:
            return False
        if self.metric not in row:
            raise NeojaxError(
                f"train.best_metric={self.metric} did not come of the evaluation at step {step}"
                f"{suggest(self.metric, [name for name in row if '_' in name])}"
            )
        value = float(row[self.metric])
        gain = math.inf if self.value is None else self._sign * (value - self.value)
        if math.isfinite(value) and gain > (0 if self.value is None else self.train.min_gain):
            self.step, self.value, self.since = step, value, 0
            return True
        self.since += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether the run is to end."""
        return 0 < self.train.patience <= self.since

    def saved(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of it."""
        if not self.metric:
            return None
        return {"metric": self.metric, "step": self.step, "value": self.value, "since": self.since}

    def told(self) -> str:
        """The best evaluation and where its checkpoint is, as a clause; nothing where there is none."""
        if self.step is None or self.value is None:
            return ""
        folder = f"{self.train.run_dir}/checkpoints/best"
        return f"; best {self.metric} {self.value:.4f} at step {self.step}, {folder}"
