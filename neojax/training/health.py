"""Numbers gone bad: steps that were skipped, losses that jump, states that must not be saved.

The step itself skips an update whose loss or gradient is not finite (`step.make_train_step`); here is what
the run knows of it. All of it depends on the losses of the steps alone and is saved with a checkpoint, so
that a resumed run says what one that was never stopped says.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from neojax.config import TrainConfig

WINDOW = 64  # losses that the next one is compared with
LEAST = 16  # of them, before anything is said
DEVIATIONS = 6.0
SHARE = 0.01
NORMAL = 1.4826  # median absolute deviation -> standard deviation, where the distribution is normal


class Health:
    """Follows the losses of a run, which stay on the device until `take` waits for them.

    A loss is a spike where it is above the median of the last `WINDOW` losses by more than `DEVIATIONS`
    robust standard deviations (`NORMAL` times their median absolute deviation) and by more than `SHARE` of
    that median. Skipped steps have no loss.
    """

    def __init__(self, train: TrainConfig, saved: Mapping[str, Any] | None = None):
        saved = saved or {}
        self.run_dir = train.run_dir
        self.max_bad_steps = train.max_bad_steps
        self.skipped: int = saved.get("skipped", 0)
        self.in_a_row: int = saved.get("in_a_row", 0)
        self._losses = deque(saved.get("losses", ()), maxlen=WINDOW)
        self._marks: dict[str, list[int]] = saved.get("marks", {})
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []

    def add(self, step: int, values: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of `step`, loss and grad_norm among them; does not wait for them."""
        self._pending.append((step, {name: values[name] for name in ("loss", "grad_norm")}))

    def take(self) -> list[str]:
        """Waits for all steps that were added; gives a line to show for each that was skipped, up to one that
        made `max_bad_steps` in a row."""
        lines = []
        pending, self._pending = self._pending, []
        for step, values in jax.device_get(pending):
            loss, norm = float(values["loss"]), float(values["grad_norm"])
            if math.isfinite(loss) and math.isfinite(norm):
                self.in_a_row = 0
                if self._is_spike(loss):
                    self._marks.setdefault("loss_spikes", []).append(step)
                self._losses.append(loss)
                continue
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            self._marks.setdefault("skipped_steps", []).append(step)
            lines.append(
                f"step {step} was skipped: its loss is {loss}, its gradient norm {norm} (its documents: "
                f"neojax data show {self.run_dir} --step {step})"
            )
            if self.is_hopeless():
                break
        return lines

    def is_hopeless(self) -> bool:
        """Whether so many steps in a row were skipped that the run should end."""
        return self.in_a_row >= self.max_bad_steps

    def row(self) -> dict[str, Any]:
        """What metrics.jsonl says: `skipped`, the number of steps so far, and since the last row, where there
        are any, the steps `skipped_steps` and `loss_spikes`."""
        marks, self._marks = self._marks, {}
        return {"skipped": self.skipped, **marks}

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps, for JSON."""
        marks = {name: list(steps) for name, steps in self._marks.items()}
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "losses": list(self._losses),
            "marks": marks,
        }

    def _is_spike(self, loss: float) -> bool:
        if len(self._losses) < LEAST:
            return False
        middle = statistics.median(self._losses)
        deviation = NORMAL * statistics.median(abs(x - middle) for x in self._losses)
        return loss - middle > max(DEVIATIONS * deviation, SHARE * abs(middle))


def not_finite(state: Any) -> list[str]:
    """The arrays of `state` that hold infinities or NaN, by their paths. Reads the state once, on its
    devices."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(_are_finite(state)))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, finite in leaves if not finite]


@jax.jit
def _are_finite(state: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), state)
