"""Pre-trains a small ALBERT on text that every machine with neojax has: the docstrings of Python's standard
library, of NumPy and of JAX.

Prepares them with a tokenizer of unigrams, trains meshconfigs/albert-demo.yml on 8 fake CPU devices on masked
words and on the order of sentences, and prints how well it tells them in held-out docstrings, beside what the
commonest piece and the commonest label get. Then fine-tunes it on 48 labelled pairs of passages to tell which
of the two comes first in a docstring that it has not seen, five times on other pairs, beside the same model
from random weights and a bag of words. Run it with `make albert`; run it again and it goes on where it
stopped.
"""

import ast
import hashlib
import json
import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
CONFIG = "meshconfigs/albert-demo.yml"
FINE_TUNE, LABELS = "meshconfigs/albert-demo-labels.yml", "demo/albert-labels"
ALIKE = (
    "train.learning_rate=1e-3 train.rate_factors=[]"  # where nothing is known, all learns alike, and faster
)
LABELLED, SETS = 48, 5
PASSAGE = 22  # pieces of each of two passages, which fit the model's context beside [CLS] and two [SEP]
KEPT_OUT = 6  # of so many docstrings one is not pre-trained on, and gives labelled pairs
PAIRS = 4  # of a docstring at most
TEXT, DATA, RUN = "demo/docstrings.jsonl", "demo/albert-data", "demo/albert-run"
PACKAGES = ("numpy", "jax")
SHORTEST = 240  # characters of a docstring that says something
PREPARE = (
    f"neojax prepare {TEXT} --out {DATA} --train-tokenizer 2048 --tokenizer-kind unigram --sentences marks "
    "--validation 0.05"
)


def run(command: str) -> None:
    """Shows a command as a user would type it, and runs it."""
    print(f"\n$ {command}", flush=True)
    program, *arguments = command.split()
    start = ["-m", program] if program == "neojax" else [program]
    if done := subprocess.run([sys.executable, *start, *arguments], cwd=ROOT).returncode:
        raise SystemExit(done)


def sources() -> Iterator[Path]:
    """The source files of the standard library and of the packages, without their tests."""
    folders = [Path(sysconfig.get_paths()["stdlib"])]
    for name in PACKAGES:
        if spec := find_spec(name):
            folders += map(Path, spec.submodule_search_locations or ())
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            inner = file.relative_to(folder).parts
            if not {"site-packages", "test", "tests", "_tests", "pydoc_data"}.intersection(inner):
                yield file


def docstrings() -> Iterator[str]:
    """The docstrings of all of them, each once."""
    seen = set()
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for file in sources():
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # kept to be refused
            continue
        for node in ast.walk(tree):
            text = (ast.get_docstring(node) or "") if isinstance(node, documented) else ""
            if len(text) >= SHORTEST and text not in seen:
                seen.add(text)
                yield text


def number(text: str) -> int:
    """A number below `KEPT_OUT` that a text always has; those with 0 are kept for labels."""
    return int(hashlib.md5(text.encode()).hexdigest(), 16) % KEPT_OUT


def prepare() -> None:
    """Writes the docstrings, but for those that are kept for labels, as JSON lines, and prepares them."""
    if (ROOT / DATA / "prepared.json").exists():
        return
    (ROOT / TEXT).parent.mkdir(exist_ok=True)
    with (ROOT / TEXT).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in docstrings() if number(text))
    run(PREPARE)


def compare() -> None:
    """Prints the held-out accuracies beside what one gets who always says the commonest."""
    from neojax import config as configuration
    from neojax.data.loader import validation_batches
    from neojax.data.pairing import pairing_of
    from neojax.data.store import TokenStore

    config = configuration.of_run(ROOT / RUN)
    pairing = pairing_of(config, (ROOT / RUN / "tokenizer.json").read_text(encoding="utf-8"))
    counts = np.zeros(config.model.n_vocab)
    for chunk in TokenStore(ROOT / DATA / "train").chunks():
        counts += np.bincount(chunk, minlength=len(counts))
    counts[[pairing.cls, pairing.sep, pairing.pad]] = 0
    targets, labels = [], []
    held_out = config.data.validation[0]
    for batch in validation_batches(config.data, held_out, config.model.n_ctx, 64, pairing=pairing):
        targets.append(batch.targets[batch.targets >= 0])
        labels.append(batch.labels[batch.labels >= 0])
    targets, labels = np.concatenate(targets), np.concatenate(labels)
    log_shares = np.log((counts + 1) / (counts + 1).sum())
    rows = [json.loads(line) for line in (ROOT / RUN / "metrics.jsonl").read_text().splitlines()]
    ours = next(row for row in reversed(rows) if "validation_loss" in row)
    commonest = np.mean(targets == counts.argmax())
    majority = max(np.mean(labels), 1 - np.mean(labels))
    print(f"\nheld out: {len(targets):,} masked pieces and {len(labels):,} pairs")
    table = {
        "masked pieces told": (commonest, ours["validation_accuracy"]),
        "loss of masked pieces, nats": (-log_shares[targets].mean(), ours["validation_loss"]),
        "order of pairs told": (majority, ours["validation_pair_accuracy"]),
    }
    print(f"{'':<30}{'by counts':>12}{'this model':>12}")
    for what, (counted, own) in table.items():
        print(f"{what:<30}{counted:>12.3f}{own:>12.3f}")


def passages(text: str, tokenizer: Any) -> list[str]:
    """A text cut into passages of whole sentences, of at most `PASSAGE` pieces where a sentence has not
    more."""
    from neojax.data.sentences import split

    found: list[str] = []
    size = 0
    for sentence in split(text, "marks"):
        words = " ".join(sentence.split())
        pieces = len(tokenizer.encode(words, add_special_tokens=False).ids)
        if found and size + pieces <= PASSAGE:
            found[-1] += f" {words}"
            size += pieces
        elif words:
            found.append(words)
            size = pieces
    return found


def label() -> None:
    """Writes pairs of passages of a docstring that was kept out, near to each other or not, half of them
    changed: `SETS` sets to learn from, one to choose settings by, and one to be tested on, each of docstrings
    of its own."""
    from neojax.data import tokenizer as tokenizers

    tokenizer = tokenizers.load(ROOT / DATA / "tokenizer.json")
    texts = sorted(text for text in docstrings() if not number(text))
    draw = random.Random(0)
    draw.shuffle(texts)
    pairs: list[list[dict[str, str]]] = []
    for text in texts:
        parts = passages(text, tokenizer)
        both = list(combinations(parts, 2))
        both = draw.sample(both, min(PAIRS, len(both)))
        rows = [(a, b, "in order") if draw.random() < 0.5 else (b, a, "changed") for a, b in both]
        pairs.append([{"text": a, "text2": b, "label": own} for a, b, own in rows])
    wanted = {str(i): LABELLED for i in range(SETS)} | {"chosen_by": 200, "held_out": 10**6}
    (ROOT / LABELS).mkdir(parents=True, exist_ok=True)
    for name, count in wanted.items():
        rows = []
        while pairs and len(rows) < count:
            rows += pairs.pop()
        lines = [json.dumps(row) + "\n" for row in rows[:count]]
        (ROOT / LABELS / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_rows(name: str) -> list[dict[str, str]]:
    """The labelled pairs of a file that `label` wrote."""
    return [json.loads(line) for line in (ROOT / LABELS / f"{name}.jsonl").open(encoding="utf-8")]


def bag_of_words(train: str) -> float:
    """The share of held-out pairs whose order logistic regression tells by the pieces of the two passages.

    What it reads (the difference of the two bags, or one beside the other; counts, or what is there at all)
    and how much its weights are held back are those of which the pairs to choose by are told best.
    """
    from neojax.data import tokenizer as tokenizers

    tokenizer = tokenizers.load(ROOT / DATA / "tokenizer.json")
    bags, labels = {}, {}
    for name in (train, "chosen_by", "held_out"):
        rows = read_rows(name)
        both = []
        for key in ("text", "text2"):
            found = tokenizer.encode_batch([row[key] for row in rows], add_special_tokens=False)
            both.append([np.bincount(text.ids[:PASSAGE], minlength=2048) for text in found])
        bags[name] = np.array(both, float)
        labels[name] = np.array([row["label"] == "in order" for row in rows])
    ways = {
        "difference": lambda a, b: a - b,
        "both": lambda a, b: np.concatenate([a, b, np.ones((len(a), 1))], axis=1),
    }
    best = (0.0, 0.0)
    for reads in ways.values():
        for most in (np.inf, 1):
            seen = {name: reads(*np.minimum(own, most)) for name, own in bags.items()}
            for held_back in (0.1, 1.0, 10.0, 100.0):
                weights = regression(seen[train], labels[train], held_back)
                told = [
                    float(np.mean((seen[name] @ weights > 0) == labels[name]))
                    for name in ("chosen_by", "held_out")
                ]
                best = max(best, (told[0], told[1]))
    return best[1]


def regression(seen: np.ndarray, labels: np.ndarray, held_back: float) -> np.ndarray:
    """Weights [features] of logistic regression with an L2 penalty of `held_back` / 2, by Newton's method in
    the space of the rows, of which there are few."""
    alike, own = seen @ seen.T, np.zeros(len(seen))
    for _ in range(30):
        share = 1 / (1 + np.exp(-alike @ own))
        slope = share * (1 - share)
        wanted = slope * (alike @ own) + labels - share
        own = np.linalg.solve(slope[:, None] * alike + held_back * np.eye(len(seen)), wanted)
    return seen.T @ own


def fine_tune() -> None:
    """Fine-tunes the model, and the same from random weights, on each set, and prints what they tell of
    held-out pairs."""
    label()
    print(f"\n{LABELLED} labelled pairs of passages: are they in order?")
    told: dict[str, list[float]] = {"bag of words": [], "random weights": [], "pre-trained": []}
    for i in map(str, range(SETS)):
        told["bag of words"].append(bag_of_words(i))
        for name, origin in (("random weights", ALIKE), ("pre-trained", f"train.init_from={RUN}")):
            folder = f"{LABELS}/run-{i}-{name.replace(' ', '-')}"
            words = f"data.train={LABELS}/{i}.jsonl data.validation={LABELS}/held_out.jsonl"
            run(f"neojax train {FINE_TUNE} {words} {origin} train.run_dir={folder}")
            rows = (ROOT / folder / "metrics.jsonl").read_text().splitlines()
            told[name].append(json.loads(rows[-1])["validation_accuracy"])
        print(f"\nset {i}: " + ", ".join(f"{name} {own[-1]:.3f}" for name, own in told.items()))
    count = len(read_rows("held_out"))
    print(f"\nof {count:,} held-out pairs are told, mean and standard deviation over {SETS} sets of labels:")
    for name, own in told.items():
        print(f"{name:<16}{np.mean(own):.3f} +- {np.std(own, ddof=1):.3f}")


def main() -> None:
    prepare()
    run(f"train.py {CONFIG}")
    compare()
    fine_tune()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
