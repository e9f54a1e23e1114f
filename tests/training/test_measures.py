"""Metrics of answers are those of scikit-learn and SciPy."""

import numpy as np
import pytest

from neojax.training.measures import MEASURES, measured


def test_metrics_of_classes_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for classes, there in ((2, 2), (4, 4), (4, 2)):  # in the last the rows have but two of the four
        labels, said = rng.integers(0, there, (2, 50))
        average = "binary" if classes == 2 else "macro"
        expected = {
            "accuracy": sklearn.accuracy_score(labels, said),
            "f1": sklearn.f1_score(labels, said, average=average),
            "matthews": sklearn.matthews_corrcoef(labels, said),
        }
        found = measured(tuple(expected), np.eye(classes)[said], labels)
        assert found == pytest.approx(expected)


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    said = rng.normal(size=(40, 1))
    labels = (said[:, 0] + rng.normal(size=40)).round(1)  # some are equal
    found = measured(("pearson", "spearman"), said, labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(said[:, 0], labels)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(said[:, 0], labels)[0])


def test_answers_that_do_not_vary_have_no_correlation():
    same, other = np.zeros(4), np.array([0, 1, 1, 0])
    for name in ("matthews", "pearson", "spearman", "f1"):
        assert MEASURES[name](same, other) == 0
