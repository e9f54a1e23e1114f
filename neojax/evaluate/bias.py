"""Bias as a comparison of likelihoods: of two sentences that differ in whom they are about, or of a template
with words swapped, which does a model find likelier, and by how much; with 95 % intervals.

crows_pairs: pairs of sentences in the form of CrowS-Pairs (https://arxiv.org/abs/2010.00133), columns
`sent_more` and `sent_less`, and `bias_type` where there is one; measured as lm-evaluation-harness does, whole
sentences after the end-of-document token. The paper scores models of masked tokens in another way.

word_swaps: rows with a `template` that has {} in it, and two words, `a` and `b`, that are put there; `group`
where there is one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neojax.data.records import Record
from neojax.errors import NeojaxError
from neojax.evaluate.intervals import mean_error, mean_interval, share_interval
from neojax.evaluate.requests import log_likelihoods
from neojax.models import Transformer

TASKS = {"crows_pairs": ("sent_more", "sent_less"), "word_swaps": ("template", "a", "b")}
"""Name -> the columns that a row needs."""
METRICS = {
    "crows_pairs": ("pct_stereotype", "likelihood_diff", "nats_more"),
    "word_swaps": ("a_likelier", "nats_more"),
}
_GROUPS = {"crows_pairs": "bias_type", "word_swaps": "group"}


def evaluate(model: Transformer, name: str, file: str, records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the pairs of `records` come to, a row for each group, where there are several, and then one of
    all. Raises `NeojaxError`, which names the row."""
    pairs = pairs_of(name, records)
    found = log_likelihoods(model, [("", sentence) for pair in pairs for sentence in pair])
    nats = np.array([each for each, _ in found]).reshape(-1, 2)
    groups = [str(record.values.get(_GROUPS[name]) or "") for record in records]
    rows = []
    if len(set(groups)) > 1:
        for group in sorted(set(groups)):
            own = nats[[each == group for each in groups]]
            rows.append({"task": f"{name}_{group or 'none'}", "file": file, **_row(name, own)})
    return [*rows, {"task": name, "file": file, **_row(name, nats)}]


def pairs_of(name: str, records: Sequence[Record]) -> list[tuple[str, str]]:
    """The two sentences of every row. Raises `NeojaxError`, which names the row."""
    return [_pair(name, record) for record in records]


def _pair(name: str, record: Record) -> tuple[str, str]:
    """The two sentences of a row, of which the first is the stereotype, or has word `a`."""
    values = record.values
    for column in TASKS[name]:
        if not isinstance(values.get(column), str) or not values[column].strip():
            raise NeojaxError(f"{record.where}: {column!r} is {values.get(column)!r}; expected a text")
    if name == "crows_pairs":
        return values["sent_more"], values["sent_less"]
    if "{}" not in values["template"]:
        raise NeojaxError(f"{record.where}: the template has no {{}} in the place of a word")
    return values["template"].replace("{}", values["a"]), values["template"].replace("{}", values["b"])


def _row(name: str, nats: np.ndarray) -> dict[str, Any]:
    """What log-likelihoods [pairs, 2] come to. The names of crows_pairs are the harness's."""
    difference = nats[:, 0] - nats[:, 1]
    likelier = (difference > 0).astype(float)
    share, absolute = ("pct_stereotype", "likelihood_diff") if name == "crows_pairs" else ("a_likelier", "")
    row: dict[str, Any] = {"questions": len(nats), "num_fewshot": 0}
    row |= {share: float(likelier.mean()), f"{share}_stderr": mean_error(likelier)}
    row[f"{share}_interval"] = share_interval(int(likelier.sum()), len(nats))
    if absolute:
        size = np.abs(difference)
        row |= {absolute: float(size.mean()), f"{absolute}_stderr": mean_error(size)}
    row |= {"nats_more": float(difference.mean()), "nats_more_stderr": mean_error(difference)}
    row["nats_more_interval"] = mean_interval(difference)
    return row
