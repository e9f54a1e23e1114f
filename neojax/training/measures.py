"""How good answers are: the metrics of GLUE's tasks, as its own program has them (scikit-learn's and
SciPy's)."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np


def accuracy(said: np.ndarray, labels: np.ndarray) -> float:
    """The share of classes that are right."""
    return float(np.mean(said == labels))


def f1(said: np.ndarray, labels: np.ndarray, n_classes: int = 2) -> float:
    """The harmonic mean of precision and recall, of class 1 where there are two, else the mean over the
    classes that labels or answers have."""
    if n_classes <= 2:
        return _f1_of(said == 1, labels == 1)
    classes = np.union1d(said, labels)
    return float(np.mean([_f1_of(said == each, labels == each) for each in classes]))


def _f1_of(said: np.ndarray, true: np.ndarray) -> float:
    count = said.sum() + true.sum()
    return float(2 * (said & true).sum() / count) if count else 0.0


def matthews(said: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient, for any number of classes; 0 where it is not defined."""
    classes = np.union1d(said, labels)
    a, b = (np.equal.outer(x, classes).astype(np.float64) for x in (said, labels))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    root = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / root) if root else 0.0


def pearson(said: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation coefficient; 0 where one side does not vary."""
    a, b = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (said, labels))
    root = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / root) if root else 0.0


def spearman(said: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's of the ranks, equal numbers sharing the mean of theirs."""
    return pearson(_ranks(said), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def micro_f1(said: np.ndarray, labels: np.ndarray) -> float:
    """The harmonic mean of precision and recall of all classes together, of bool [rows, classes]."""
    return _f1_of(said, labels > 0)


def macro_f1(said: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the harmonic means of each class, of bool [rows, classes]; 0 of one that is neither there
    nor said."""
    return float(np.mean([_f1_of(own, true) for own, true in zip(said.T, labels.T > 0)]))


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
}


def measured(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics `names` of logits [rows, classes] against classes, int [rows], of numbers [rows, 1] against
    numbers, float [rows], or of classes of which any number may hold against 1 for those that do, float
    [rows, classes]."""
    if labels.ndim == 2:
        said = logits > 0
    else:
        is_number = np.issubdtype(labels.dtype, np.floating)
        said = logits[:, 0] if is_number else logits.argmax(axis=-1)
    more = {"f1": partial(f1, n_classes=logits.shape[-1])}  # also where the rows have but two of them
    return {name: more.get(name, MEASURES[name])(said, labels) for name in names}
