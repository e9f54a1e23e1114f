"""What the examples write and measure by themselves is what they say."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import albert
import answers


@pytest.mark.parametrize("task", answers.TASKS)
def test_records_are_each_once_and_have_what_is_asked(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answers, "TRAIN", 60)
    monkeypatch.setattr(answers, "HELD_OUT", 20)
    answers.write(task, tmp_path)
    train, held_out = (
        (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "held_out")
    )
    assert len({*train, *held_out}) == 80
    for record in map(json.loads, held_out):
        asked, wanted = answers.asked_of(record)
        assert wanted and wanted not in asked and asked.endswith(":")
        if task != "translation":  # what is said was told
            names = [word.strip(".") for word in wanted.split() if word.strip(".") in answers.NAMES]
            assert all(name in asked for name in names)


def test_german_has_its_cases_and_its_verb_in_the_second_place():
    draw, seen = random.Random(1), set()
    for record in (answers.translation(draw) for _ in range(400)):
        words = record["completion"].split()
        verb = next(i for i, word in enumerate(words) if word in dict(answers.VERBS).values())
        if words[0] in dict(answers.WHEN).values():
            assert verb == 1
        seen |= set(words)
        if "den" in words or "einen" in words:  # only an object that is masculine
            german = {noun: gender for _, noun, gender in answers.NOUNS}
            assert german[words[-1]] == "m"
    assert {"den", "einen", "die", "das"} <= seen


def test_bleu_and_rouge_are_those_of_others():
    sacrebleu = pytest.importorskip("sacrebleu")
    draw = random.Random(0)
    wanted = [" ".join(draw.choices("abcdefg", k=draw.randint(5, 12))) for _ in range(30)]
    said = [" ".join(draw.choice("abc") if draw.random() < 0.2 else word for word in text.split()[:-1])
            for text in wanted]  # fmt: skip
    theirs = sacrebleu.corpus_bleu(said, [wanted], tokenize="none", smooth_method="none").score
    assert answers.bleu(said, wanted) == pytest.approx(theirs / 100, rel=1e-6)
    assert answers.bleu(["a b"], ["c d"]) == 0.0
    assert answers.rouge_l("a b c d", "b x d") == pytest.approx(2 * 2 / 7)
    assert answers.rouge_l("a b", "a b") == 1.0


def test_the_bag_of_words_is_logistic_regression():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    seen = rng.poisson(0.5, (48, 90)).astype(float)
    labels = seen[:, 0] + rng.normal(size=48) > 0.5
    for held_back in (0.1, 10.0):
        theirs = linear.LogisticRegression(C=1 / held_back, fit_intercept=False, tol=1e-8, max_iter=5000)
        ours = albert.regression(seen, labels, held_back)
        np.testing.assert_allclose(ours, theirs.fit(seen, labels).coef_[0], atol=1e-3)
