"""How good answers to questions are: SQuAD's exact match and F1, as shares of 1.

As in evaluate-v2.0.py of rajpurkar/SQuAD-explorer, which gives percent.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from neojax.data.answers import Reply
from neojax.data.questions import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """`text` in lower case, without punctuation and articles, with single blanks between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(said: str, true: str) -> float:
    """1 where both are the same but for case, punctuation, articles and blanks, else 0."""
    return float(normalized(said) == normalized(true))


def word_f1(said: str, true: str) -> float:
    """The harmonic mean of precision and recall of the words; of nothing, whether both are."""
    a, b = normalized(said).split(), normalized(true).split()
    if not a or not b:
        return float(a == b)
    common = (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b))


def golds(question: Question) -> list[str]:
    """The answers that are right; "" alone where there is none."""
    return [a.text for a in question.answers or () if normalized(a.text)] or [""]


def squad_scores(questions: Sequence[Question], replies: Sequence[Reply], may_lack: bool) -> dict[str, float]:
    """exact_match and f1, the means over questions of what is best among the right answers. Where there may
    be no answer, also those of the questions that have one (has_answer_) and of the others (no_answer_), and
    the best that a threshold of null_score_diff could reach, with it (best_f1, best_f1_threshold, ...)."""
    said = [reply.answer.text for reply in replies]
    found = {"exact_match": _each(exact_match, said, questions), "f1": _each(word_f1, said, questions)}
    scores = {name: float(np.mean(own)) for name, own in found.items()}
    if not may_lack:
        return scores
    has = np.array([bool(each.answers) for each in questions])
    for prefix, which in (("has_answer", has), ("no_answer", ~has)):
        if which.any():
            scores |= {f"{prefix}_{name}": float(own[which].mean()) for name, own in found.items()}
    differences = np.array([reply.null_score_diff or 0.0 for reply in replies])
    texts = [reply.best for reply in replies]
    for name, measure in (("exact_match", exact_match), ("f1", word_f1)):
        best, threshold = _best(_each(measure, texts, questions), differences, has, texts)
        scores |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
    return scores


def _each(
    measure: Callable[[str, str], float], said: Sequence[str], questions: Sequence[Question]
) -> np.ndarray:
    """[questions]: what `measure` gives against the best of the right answers."""
    return np.array([max(measure(own, true) for true in golds(each)) for own, each in zip(said, questions)])


def _best(
    scores: np.ndarray, differences: np.ndarray, has: np.ndarray, texts: Sequence[str]
) -> tuple[float, float]:
    """(the best mean score that a threshold gives, it): questions whose difference is not above it are
    answered with their best text, which has `scores`, the others with none. From the lowest on, the first;
    where it is best to answer none, 0 as SQuAD's program says, or what is below all differences."""
    answered = np.where(has, scores, [-1.0 if text else 0.0 for text in texts])
    order = np.argsort(differences, kind="stable")
    reached = float((~has).sum()) + np.cumsum(answered[order])
    last = int(reached.argmax())
    if reached[last] <= (~has).sum():
        return float((~has).mean()), min(0.0, float(np.nextafter(differences.min(), -np.inf)))
    return float(reached[last] / len(scores)), float(differences[order[last]])
