"""Labelled text about people who never were, to fine-tune on: sentences with named entities, and questions
about short lives.

Writes entities.train.conll and entities.dev.conll, questions.train.json and questions.dev.json (SQuAD 2.0's
form), and text.jsonl, all words of the training rows, for a tokenizer. No name of a person, place or firm of
the held-out rows stands in those to train on, and all three kinds are made of the same syllables: what a name
is, what stands around it says. Prints what one gets without a model.

    python examples/people.py demo/people
"""

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from neojax.data.questions import Answer, Question
from neojax.data.squad_scores import exact_match, golds, word_f1
from neojax.data.tagged import entity_scores

FIRST = "Ada Bruno Clara Dov Edith Felix Greta Hugo Ines Jonas Klara Leo Mina Nils Olga Pavel Rosa Tobias"
BEGIN = "Al Bar Cor Dun El Fal Gor Hal Ing Kes Lun Mar Nor Os Pel Rav Sel Tor Ul Var Wes Yar"
END = "bach berg dale den ford gard ham holt ick lund mere nov rud stad sund ton vik wold"
FIRMS = ("{} Mills", "{} & Sons", "{} Press", "Bank of {}", "{}")
ROWS = {"train": (600, 8000), "dev": (400, 400)}  # sentences, questions


class Fact(NamedTuple):
    """Sentences of a fact about {P}; the questions that its slots answer, by the slot."""

    sentences: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]


FACTS = (
    Fact(
        (
            "{P} was born in {L} in {Y} .",
            "In {Y} {P} was born near {L} .",
            "{L} is where {P} was born , in {Y} .",
        ),
        {"L": ("Where was {P} born ?", "What is the birthplace of {P} ?"), "Y": ("When was {P} born ?",)},
    ),
    Fact(
        ("From {Y} on {P} worked for {O} .", "{O} hired {P} in {Y} .", "{P} found work at {O} in {Y} ."),
        {"O": ("For whom did {P} work ?", "Who hired {P} ?"), "Y": ("When was {P} hired ?",)},
    ),
    Fact(
        (
            "{P} married {Q} in {L} .",
            "In {L} {P} met {Q} , and they married .",
            "{Q} and {P} married at {L} .",
        ),
        {"Q": ("Whom did {P} marry ?", "Who married {P} ?"), "L": ("Where did {P} marry ?",)},
    ),
    Fact(
        (
            "Later {P} moved to {L} and founded {O} .",
            "{O} was founded by {P} at {L} .",
            "In {L} {P} founded {O} .",
        ),
        {"O": ("What did {P} found ?", "Which firm did {P} found ?"), "L": ("Where did {P} found a firm ?",)},
    ),
    Fact(
        (
            "{P} died in {Y} at {L} .",
            "Until {Y} {P} lived in {L} , and died there .",
            "In {L} {P} died in {Y} .",
        ),
        {"Y": ("When did {P} die ?",), "L": ("Where did {P} die ?",)},
    ),
)
KINDS = {"P": "PER", "Q": "PER", "L": "LOC", "O": "ORG"}


class Names:
    """Draws names of which no stem is one of the other split."""

    def __init__(self, rng: random.Random, split: str):
        stems = [begin + end for begin in BEGIN.split() for end in END.split()]
        random.Random(0).shuffle(stems)
        self.stems = stems[::4] if split == "dev" else [s for i, s in enumerate(stems) if i % 4]
        self.rng = rng

    def slots(self) -> dict[str, str]:
        """A name for every slot."""
        stem: Callable[[], str] = lambda: self.rng.choice(self.stems)  # noqa: E731
        return {
            "P": f"{self.rng.choice(FIRST.split())} {stem()}",
            "Q": f"{self.rng.choice(FIRST.split())} {stem()}",
            "L": stem(),
            "O": self.rng.choice(FIRMS).format(stem()),
            "Y": str(self.rng.randint(1700, 1899)),
        }


def tagged(names: Names) -> tuple[list[str], list[str]]:
    """The words of a sentence, and their tags."""
    words, tags, slots = [], [], names.slots()
    for part in names.rng.choice(names.rng.choice(FACTS).sentences).split():
        own = slots[part[1]].split() if part[0] == "{" else [part]
        kind = KINDS.get(part[1]) if part[0] == "{" else None
        words += own
        tags += [f"{'I' if i else 'B'}-{kind}" if kind else "O" for i in range(len(own))]
    return words, tags


def asked(names: Names, number: int) -> Question:
    """A life of two or three facts, and a question about one of them, or about one that it does not tell."""
    rng, slots = names.rng, names.slots()
    facts = rng.sample(range(len(FACTS)), 5)
    told, missing = facts[: rng.randint(2, 3)], facts[4]
    passage, answers = "", {}
    for i, fact in enumerate(told):
        own = {**names.slots(), "P": slots["P"] if i == 0 else slots["P"].split()[1]}
        for part in rng.choice(FACTS[fact].sentences).split():
            text = own[part[1]] if part[0] == "{" else part
            passage += " " if passage and text not in (".", ",") else ""
            if part[0] == "{":
                answers[fact, part[1]] = Answer(text, len(passage))
            passage += text
    fact = missing if rng.random() < 0.25 else rng.choice(told)
    slot = rng.choice(list(FACTS[fact].questions))
    text = rng.choice(FACTS[fact].questions[slot]).format(**slots)
    own = (answers[fact, slot],) if fact != missing else ()
    return Question("", f"q{number}", text, passage, own)


def write(folder: Path) -> None:
    """Writes all files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, rows, questions = [], {}, {}
    for split, (sentences, count) in ROWS.items():
        names = Names(random.Random(split), split)
        rows[split] = [tagged(names) for _ in range(sentences)]
        lines = ("".join(f"{word} {tag}\n" for word, tag in zip(*row)) for row in rows[split])
        (folder / f"entities.{split}.conll").write_text("\n".join(lines))
        questions[split] = [asked(names, number) for number in range(count)]
        paragraphs = [
            {
                "context": each.context,
                "qas": [
                    {
                        "id": each.id,
                        "question": each.text,
                        "answers": [{"text": a.text, "answer_start": a.start} for a in each.answers or ()],
                        "is_impossible": not each.answers,
                    }
                ],
            }
            for each in questions[split]
        ]
        content = {"version": "v2.0", "data": [{"title": split, "paragraphs": paragraphs}]}
        (folder / f"questions.{split}.json").write_text(json.dumps(content, indent=1))
        if split == "train":
            texts = [" ".join(words) for words, _ in rows[split]]
            texts += [f"{each.text} {each.context}" for each in questions[split]]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    usual = without_model(rows["train"], rows["dev"])
    print(
        "entities: every word's commonest tag, of a new name that behind the word before it: F1 "
        f"{usual:.3f} of {len(rows['dev'])} sentences"
    )
    none, exact, f1 = by_rule(questions["dev"])
    print(
        f"questions: no answer to any: exact match {none:.3f}; the first name or year that fits: exact match "
        f"{exact:.3f}, F1 {f1:.3f}, of {len(questions['dev'])} questions"
    )


def without_model(train: list, dev: list) -> float:
    """F1 of entities where each word has the tag that it mostly has in `train`; a name that is not there,
    that which rare words mostly have behind the same word."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for words, tags in train:
        for word, tag in zip(words, tags):
            counts[word][tag] += 1
    behind: dict[str, Counter] = defaultdict(Counter)
    for words, tags in train:
        for former, word, tag in zip(["", *words], words, tags):
            if counts[word].total() < 3:
                behind[former][tag] += 1
                behind["any"][tag] += 1

    def tag(former: str, word: str) -> str:
        found = counts.get(word) or behind.get(former) or behind["any"]
        return found.most_common(1)[0][0] if word in counts or word[0].isupper() else "O"

    said = [[tag(*pair) for pair in zip(["", *words], words)] for words, _ in dev]
    return entity_scores(said, [tags for _, tags in dev])["f1"]


def by_rule(questions: list[Question]) -> tuple[float, float, float]:
    """(exact match of no answers; exact match and F1 of a rule): a question for a time is
    answered with the first year, any other with the first name behind that of the person."""
    none, exact, f1 = [], [], []
    for each in questions:
        said = next(_spans(each.text.startswith("When"), each.context.split()), "")
        rights = golds(each)
        none.append(max(exact_match("", right) for right in rights))
        exact.append(max(exact_match(said, right) for right in rights))
        f1.append(max(word_f1(said, right) for right in rights))
    count = len(questions)
    return sum(none) / count, sum(exact) / count, sum(f1) / count


def _spans(is_time: bool, words: list[str]) -> Iterator[str]:
    person = next(i for i, word in enumerate(words) if word in FIRST.split())
    for i, word in enumerate(words):
        if is_time and word.isdecimal():
            yield word
        if not is_time and word[0].isupper() and i not in (0, person, person + 1):
            yield word


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/people.py FOLDER")
    write(Path(sys.argv[1]))
