"""Standard errors and intervals of what is measured over a sample."""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np

NORMAL_95 = 1.959963984540054


def mean_error(values: Sequence[float]) -> float | None:
    """The standard error of a mean; None for fewer than two values."""
    n = len(values)
    return float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None


def bootstrap_error(measure: Callable[[np.ndarray], float], n: int, resamples: int = 1000) -> float | None:
    """The standard error of `measure(places)`, with `places` among n that are drawn anew with replacement, as
    lm-evaluation-harness draws them for as many resamples, 1000 at most. None for fewer than two."""
    if n < 2:
        return None
    draw = random.Random(0)
    found = [measure(np.array(draw.choices(range(n), k=n))) for _ in range(resamples)]
    return float(np.std(found, ddof=1))


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, hits of n, by Wilson's score (Journal of the American Statistical
    Association 22, 1927)."""
    z2 = NORMAL_95**2
    share = hits / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean, by the normal distribution; None for fewer than two values."""
    error = mean_error(values)
    if error is None:
        return None
    mean = float(np.mean(values))
    return mean - NORMAL_95 * error, mean + NORMAL_95 * error
