"""Small tasks of answers, made up by rule, on which a tiny GPT-Neo shows in minutes what fine-tuning to
answers does: chat, summaries, translation. docs/finetuning.md runs them.

    python examples/answers.py write chat demo/chat           # train.jsonl, held_out.jsonl, tokenizer.json
    python examples/answers.py measure demo/chat/run demo/chat/held_out.jsonl

No held-out record is in train.jsonl. `measure` asks every held-out record's last question, takes the
likeliest answer, and prints the share of answers that are right to the letter, BLEU (Papineni et al. 2002,
https://aclanthology.org/P02-1040, of all answers together, unsmoothed) and the mean ROUGE-L (F1 of the
longest common subsequence of words, Lin 2004, https://aclanthology.org/W04-1013), with three examples.
"""

import argparse
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HELD_OUT, TRAIN, N_VOCAB = 300, 6000, 512
NAMES = ["Anna", "Boris", "Clara", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas"]
CITIES = ["Paris", "Rome", "Oslo", "Vienna", "Lisbon", "Cairo", "Lima", "Tokyo"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
Record = dict[str, Any]

# English, German with its gender: m, f, n.
NOUNS = [
    ("dog", "Hund", "m"), ("man", "Mann", "m"), ("bird", "Vogel", "m"), ("teacher", "Lehrer", "m"),
    ("cat", "Katze", "f"), ("woman", "Frau", "f"), ("mouse", "Maus", "f"), ("nurse", "Pflegerin", "f"),
    ("child", "Kind", "n"), ("horse", "Pferd", "n"), ("girl", "Mädchen", "n"), ("pig", "Schwein", "n"),
]  # fmt: skip
ADJECTIVES = [("old", "alt"), ("small", "klein"), ("good", "gut"), ("young", "jung"), ("quick", "schnell")]
VERBS = [("sees", "sieht"), ("hears", "hört"), ("finds", "findet"), ("seeks", "sucht"), ("knows", "kennt")]
WHEN = [("today", "heute"), ("often", "oft"), ("now", "jetzt"), ("here", "hier")]
ARTICLES = {  # (article, ending of an adjective) as subject and as object
    ("the", "m"): (("der", "e"), ("den", "en")), ("the", "f"): (("die", "e"), ("die", "e")),
    ("the", "n"): (("das", "e"), ("das", "e")), ("a", "m"): (("ein", "er"), ("einen", "en")),
    ("a", "f"): (("eine", "e"), ("eine", "e")), ("a", "n"): (("ein", "es"), ("ein", "es")),
}  # fmt: skip


def translation(draw: random.Random) -> Record:
    """An English sentence, and German: its cases, and its verb in the second place."""
    sides = []
    for case in (0, 1):
        english, german, gender = draw.choice(NOUNS)
        article = draw.choice(["the", "a"])
        own, ending = ARTICLES[article, gender][case]
        adjective = draw.choice([None, *ADJECTIVES])
        if adjective is not None:
            english, german = f"{adjective[0]} {english}", f"{adjective[1]}{ending} {german}"
        article = "an" if article == "a" and english[0] == "o" else article
        sides.append((f"{article} {english}", f"{own} {german}"))
    (subject, der), (thing, den) = sides
    verb, german = draw.choice(VERBS)
    when = draw.choice([None, *WHEN])
    if when is None:
        asked, said = f"{subject} {verb} {thing}", f"{der} {german} {den}"
    else:
        asked, said = f"{when[0]} {subject} {verb} {thing}", f"{when[1]} {german} {der} {den}"
    return {"prompt": f"English: {asked}\nGerman:", "completion": f" {said}"}


def summaries(draw: random.Random) -> Record:
    """A report of a meeting, with what is beside the point, and one sentence of who did what where and
    when."""
    first, second = draw.sample(NAMES, 2)
    city, day = draw.choice(CITIES), draw.choice(DAYS)
    thing, done = draw.choice(
        [("contract", "signed"), ("house", "bought"), ("plan", "discussed"), ("song", "recorded")]
    )
    weather = draw.choice(["It rained all day.", "The sun was out.", "It was cold and windy."])
    meal = draw.choice(["They had soup for lunch.", "Lunch was late.", "Nobody was hungry."])
    other = draw.choice([name for name in NAMES if name not in (first, second)])
    middle = [f"{other} stayed at home.", weather, meal]
    draw.shuffle(middle)
    facts = [f"{first} came to {city} on {day}.", f"There {second} was waiting."]
    end = f"In the evening the two {done} a {thing}."
    report = " ".join([facts[0], middle[0], facts[1], *middle[1 : draw.randint(1, 3)], end])
    summary = f"{first} and {second} {done} a {thing} in {city} on {day}."
    return {"prompt": f"{report}\nIn short:", "completion": f" {summary}"}


def chat(draw: random.Random) -> Record:
    """A conversation with somebody who keeps in mind what was said: names, cities, and what to bring."""
    name, city, day = draw.choice(NAMES), draw.choice(CITIES), draw.choice(DAYS)
    told = [
        (draw.choice([f"Hello, I am {name}.", f"My name is {name}."]), f"Hello {name}!"),
        (draw.choice([f"I live in {city}.", f"My home is {city}."]), f"{city} is a fine place."),
        (draw.choice([f"I leave on {day}.", f"My train goes on {day}."]), f"I will think of {day}."),
    ]
    asked = [
        (draw.choice(["What is my name?", "Who am I?"]), f"You are {name}."),
        (draw.choice(["Where do I live?", "Which city is my home?"]), f"You live in {city}."),
        (draw.choice(["When do I leave?", "On which day is my train?"]), f"You leave on {day}."),
    ]
    which = draw.sample(range(3), draw.randint(2, 3))
    turns = [told[i] for i in which]
    turns.append(asked[draw.choice(which)])
    said = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in turns]
    return {"messages": [message for turn in said for message in turn]}


TASKS: dict[str, Callable[[random.Random], Record]] = {
    "chat": chat,
    "summaries": summaries,
    "translation": translation,
}


def write(task: str, folder: Path) -> None:
    """Writes the records of `task`, no two of them alike, and a tokenizer of their text."""
    sys.path.insert(0, str(ROOT))
    from neojax.data import tokenizer as tokenizers
    from neojax.data.chat_template import DEFAULT, ChatTemplate

    draw, lines = random.Random(0), {}
    while len(lines) < HELD_OUT + TRAIN:
        lines.setdefault(json.dumps(TASKS[task](draw), ensure_ascii=False))
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(lines)
    for name, own in (("held_out", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in own), encoding="utf-8")
    template = ChatTemplate(DEFAULT, "", "")

    def texts() -> Iterator[str]:
        for row in map(json.loads, rows[HELD_OUT:]):
            has_template = "messages" in row
            yield template.text(row["messages"]) if has_template else row["prompt"] + row["completion"]

    tokenizers.train(texts(), N_VOCAB).save(str(folder / "tokenizer.json"))
    print(f"{folder}: {TRAIN} records to learn from, {HELD_OUT} held out, a tokenizer")


def asked_of(record: Record) -> tuple[str, str]:
    """The text that a model is to continue, and what it is to say."""
    from neojax.data.chat_template import DEFAULT, ChatTemplate

    if "messages" not in record:
        return record["prompt"], record["completion"].strip()
    *before, last = record["messages"]
    return ChatTemplate(DEFAULT, "<|endoftext|>", "").text(before, asks=True), last["content"]


def bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    """BLEU of all answers together, of one to four words, without smoothing."""
    logs, lengths = 0.0, [sum(len(text.split()) for text in texts) for texts in (said, wanted)]
    for n in range(1, 5):
        hits = total = 0
        for a, b in zip(said, wanted):
            grams, own = (Counter(zip(*(text.split()[i:] for i in range(n)))) for text in (a, b))
            hits += (grams & own).total()
            total += grams.total()
        if not hits:
            return 0.0
        logs += math.log(hits / total) / 4
    return math.exp(logs + min(0.0, 1 - lengths[1] / lengths[0]))


def rouge_l(said: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words."""
    a, b = said.split(), wanted.split()
    row = [0] * (len(b) + 1)
    for word in a:
        row = [0, *_next(row, word, b)]
    return 2 * row[-1] / (len(a) + len(b)) if a or b else 1.0


def _next(above: list[int], word: str, words: list[str]) -> Iterator[int]:
    left = 0
    for i, other in enumerate(words):
        left = above[i] + 1 if word == other else max(left, above[i + 1])
        yield left


def measure(run: Path, held_out: Path) -> None:
    """Prints how good the answers of a run are."""
    sys.path.insert(0, str(ROOT))
    import neojax

    records = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
    prompts, wanted = zip(*map(asked_of, records))
    texts = neojax.generate(neojax.load(run), list(prompts), max_new_tokens=32, temperature=0.0)
    said = [text.strip() for text in texts]
    exact = sum(map(str.__eq__, said, wanted)) / len(said)
    rouge = sum(map(rouge_l, said, wanted)) / len(said)
    print(f"{len(said)} answers: {exact:.3f} exact, BLEU {bleu(said, wanted):.3f}, ROUGE-L {rouge:.3f}")
    wrong = [i for i in range(len(said)) if said[i] != wanted[i]]
    for i in [*range(2), *wrong[:1]]:
        print(f"\n{prompts[i]}\n  said:   {said[i]}\n  wanted: {wanted[i]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="write the records of a task and a tokenizer")
    writing.add_argument("task", choices=TASKS)
    writing.add_argument("folder", type=Path)
    measuring = commands.add_parser("measure", help="ask a run what is held out")
    measuring.add_argument("run", type=Path)
    measuring.add_argument("held_out", type=Path)
    args = parser.parse_args()
    if args.command == "write":
        write(args.task, args.folder)
    else:
        measure(args.run, args.held_out)


if __name__ == "__main__":
    main()
