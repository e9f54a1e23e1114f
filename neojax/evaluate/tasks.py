"""Tasks that are asked as likelihoods: what a row of each holds, and how it becomes a question.

The prompts are those of lm-evaluation-harness 0.4.13 (`lm_eval/tasks`), quirks included, so that the numbers
are; the columns are those of the files that the tasks are given out in, and of their copies at Hugging Face.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from neojax.errors import NeojaxError


class Asked(NamedTuple):
    """A question: the `answers` to choose from follow one context, or one answer several `contexts`, of which
    number `gold` is right. Where there is a single one of both, its likelihood itself is measured."""

    contexts: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int = 0

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Every context with every answer."""
        return [(context, answer) for context in self.contexts for answer in self.answers]


@dataclass(frozen=True)
class Task:
    """`columns`: each value that `ask` takes, and the names that files give it. `labels`: the words of files
    for each class, in order, beside its number. `metrics`: what is measured. `delimiter`: what stands between
    question and answer. `leaves_out`: whether a question is no example of its own; None: it takes no
    examples."""

    columns: Mapping[str, tuple[str, ...]]
    ask: Callable[[Mapping[str, Any]], Asked]
    metrics: tuple[str, ...] = ("acc",)
    labels: tuple[tuple[str, ...], ...] = ()
    delimiter: str = " "
    leaves_out: bool | None = True


def _prompt(text: str, answers: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Asked]:
    """Asks by a template, with the label's number as the right answer."""
    return lambda row: Asked((text.format(**row),), answers, row["label"])


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    """Columns that files call so."""
    return {name: (name,) for name in names}


def _lambada(row: Mapping[str, Any]) -> Asked:
    context, _, word = row["text"].rpartition(" ")
    return Asked((context,), (f" {word}",))


def _copa(row: Mapping[str, Any]) -> Asked:
    connectors = {"cause": "because", "effect": "therefore"}
    if row["question"] not in connectors:
        raise NeojaxError(f"'question' is {row['question']!r}; expected cause or effect")
    choices = (f" {row[name][:1].lower()}{row[name][1:]}" for name in ("choice1", "choice2"))
    return Asked((f"{row['premise'].strip()[:-1]} {connectors[row['question']]}",), (*choices,), row["label"])


def _hellaswag(row: Mapping[str, Any]) -> Asked:
    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    query = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return Asked((query,), tuple(map(clean, row["endings"])), row["label"])


def _winogrande(row: Mapping[str, Any]) -> Asked:
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise NeojaxError("'sentence' has no _ in the place of an option")
    return Asked((before + row["option1"], before + row["option2"]), (after.strip(),), row["label"])


_PAIR = "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"


def _wic(row: Mapping[str, Any]) -> Asked:
    word = row["sentence1"][int(row["start1"]) : int(row["end1"])]
    query = (
        f"{_PAIR.format(**row)}Question: Is the word '{word}' used in the same way in the two sentences "
        "above?\nAnswer:"
    )
    return Asked((query,), ("no", "yes"), row["label"])


def _wsc(row: Mapping[str, Any]) -> Asked:
    raw, pronoun = row["text"], row["span2_text"]
    before = " ".join(raw.split()[: int(row["span2_index"])])
    text = f"{before} *{pronoun}*{raw[len(before) + len(pronoun) + 1 :]}"
    for old, new in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(old, new)
    text = re.sub(r" (['.,])", r"\1", text)
    query = (
        f"Passage: {text}\nQuestion: In the passage above, does the pronoun "
        f'"*{pronoun}*" refer to "*{row["span1_text"]}*"?\nAnswer:'
    )
    return Asked((query,), ("no", "yes"), row["label"])


_NO_YES = (("false", "no"), ("true", "yes"))
_ENTAILED = (("entailment",), ("not_entailment", "contradiction", "neutral"))
TASKS: dict[str, Task] = {
    "lambada": Task(_same("text"), _lambada, ("perplexity", "acc"), delimiter="", leaves_out=False),
    "copa": Task(_same("premise", "question", "choice1", "choice2", "label"), _copa),
    "piqa": Task(
        _same("goal", "sol1", "sol2", "label"),
        lambda row: Asked((f"Question: {row['goal']}\nAnswer:",), (row["sol1"], row["sol2"]), row["label"]),
        ("acc", "acc_norm"),
    ),
    "hellaswag": Task(
        _same("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        _hellaswag,
        ("acc", "acc_norm"),
    ),
    "winogrande": Task(
        {"label": ("answer",), **_same("sentence", "option1", "option2")},
        _winogrande,
        labels=(("1",), ("2",)),
    ),
    "blimp": Task(
        _same("sentence_good", "sentence_bad"),
        lambda row: Asked(("",), (row["sentence_good"], row["sentence_bad"])),
        leaves_out=None,
    ),
    "sst2": Task(
        {"sentence": ("sentence", "text"), "label": ("label",)},
        _prompt(
            "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:", ("negative", "positive")
        ),
        labels=(("negative",), ("positive",)),
    ),
    "cola": Task(
        {"sentence": ("sentence", "3"), "label": ("label", "1")},
        _prompt("{sentence}\nQuestion: Does this sentence make sense?\nAnswer:", ("no", "yes")),
        ("mcc",),
        (("unacceptable",), ("acceptable",)),
    ),
    "mrpc": Task(
        {
            "sentence1": ("sentence1", "#1 String"),
            "sentence2": ("sentence2", "#2 String"),
            "label": ("label", "Quality"),
        },
        _prompt(_PAIR + "Question: Do both sentences mean the same thing?\nAnswer:", ("no", "yes")),
        ("acc", "f1"),
        (("not_equivalent",), ("equivalent",)),
    ),
    "rte": Task(
        {
            "premise": ("premise", "sentence1"),
            "hypothesis": ("hypothesis", "sentence2"),
            "label": ("label",),
        },
        _prompt("{premise}\nQuestion: {hypothesis} True or False?\nAnswer:", ("True", "False")),
        labels=_ENTAILED,
    ),
    "boolq": Task(
        {"passage": ("passage",), "question": ("question",), "label": ("label", "answer")},
        _prompt("{passage}\nQuestion: {question}?\nAnswer:", ("no", "yes")),
        labels=_NO_YES,
    ),
    "cb": Task(
        _same("premise", "hypothesis", "label"),
        _prompt(
            "{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:",
            ("True", "False", "Neither"),
        ),
        ("acc", "f1"),
        (("entailment",), ("contradiction",), ("neutral",)),
    ),
    "wic": Task(
        _same("sentence1", "sentence2", "start1", "end1", "label"),
        _wic,
        labels=_NO_YES,
    ),
    "wsc": Task(
        _same("text", "span1_text", "span2_text", "span2_index", "label"),
        _wsc,
        labels=_NO_YES,
    ),
}
"""By name. A harness's task of the same name asks the same, but that lambada is lambada_openai there (or
lambada_standard, as the file is), rte is sglue_rte, and a set of blimp is blimp_NAME."""


def question(task: Task, values: Mapping[str, Any]) -> Asked:
    """What a row, its values by the names of its file, asks. Raises `NeojaxError` for a value that is not
    there or not as the task has it, and does not say where the row is."""
    flat = {**values, **(values["target"] if isinstance(values.get("target"), Mapping) else {})}
    row: dict[str, Any] = {}
    for name, names in task.columns.items():
        own = next((column for column in names if flat.get(column) is not None), None)
        if own is None:
            raise NeojaxError(f"there is no {' or '.join(map(repr, names))} among {', '.join(flat)}")
        row[name] = flat[own]
        if name == "label":
            row[name] = _label(task, own, flat[own])
        elif name == "endings":
            if not (isinstance(row[name], list) and len(row[name]) > 1 and all(map(_is_text, row[name]))):
                raise NeojaxError(f"{own!r} is {row[name]!r}; expected a list of texts")
        elif name in ("start1", "end1", "span2_index"):
            if not str(row[name]).isdecimal():
                raise NeojaxError(f"{own!r} is {row[name]!r}; expected a whole number")
        elif not _is_text(row[name]):
            raise NeojaxError(f"{own!r} is {row[name]!r}; expected a text")
    asked = task.ask(row)
    if not 0 <= asked.gold < max(1, len(asked.requests)):
        raise NeojaxError(f"the label is {asked.gold}, and there are {len(asked.requests)} answers")
    return asked


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _label(task: Task, name: str, value: Any) -> int:
    """The number of the class that a file calls `value`."""
    word = str(value).strip()
    for number, words in enumerate(task.labels):
        if word.lower() in words:
            return number
    numbers = not any(words[0].isdigit() for words in task.labels)  # else the words are numbers themselves
    if numbers and word.isdecimal() and (not task.labels or int(word) < len(task.labels)):
        return int(word)
    known = [words[0] for words in task.labels]
    raise NeojaxError(
        f"{name!r} is {value!r}; expected {', '.join(known) if known else 'the number of an answer'}"
    )
