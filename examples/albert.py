"""Pre-trains a small ALBERT on text that every machine with neojax has: the docstrings of Python's standard
library, of NumPy and of JAX.

Prepares them with a tokenizer of unigrams, trains meshconfigs/albert-demo.yml on 8 fake CPU devices on masked
words and on the order of sentences, and prints how well it tells them in held-out docstrings, beside what the
commonest piece and the commonest label get. Then fine-tunes it on 48 labelled docstrings to tell which
package one is from, beside the same model from random weights and a bag of words. Run it with `make albert`;
run it again and it goes on where it stopped.
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
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
CONFIG = "meshconfigs/albert-demo.yml"
FINE_TUNE, LABELS = "meshconfigs/albert-demo-labels.yml", "demo/albert-labels"
LABELLED, SETS = 48, 3
SEEN = 46  # pieces of a docstring that fit the model's context beside [CLS] and [SEP]
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


def sources() -> Iterator[tuple[Path, str]]:
    """The source files of the standard library and of the packages, without their tests, and which they are
    of."""
    folders = [(Path(sysconfig.get_paths()["stdlib"]), "standard library")]
    folders += [
        (Path(f), n)
        for n in PACKAGES
        if (spec := find_spec(n))
        for f in spec.submodule_search_locations or ()
    ]
    for folder, package in folders:
        for file in sorted(folder.rglob("*.py")):
            inner = file.relative_to(folder).parts
            if not {"site-packages", "test", "tests", "_tests", "pydoc_data"}.intersection(inner):
                yield file, package


def docstrings() -> Iterator[tuple[str, str]]:
    """The docstrings of all of them, each once, and the package that each is from."""
    seen = set()
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for file, package in sources():
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # kept to be refused
            continue
        for node in ast.walk(tree):
            text = (ast.get_docstring(node) or "") if isinstance(node, documented) else ""
            if len(text) >= SHORTEST and text not in seen:
                seen.add(text)
                yield text, package


def prepare() -> None:
    """Writes the docstrings as JSON lines, and prepares them."""
    if (ROOT / DATA / "prepared.json").exists():
        return
    (ROOT / TEXT).parent.mkdir(exist_ok=True)
    with (ROOT / TEXT).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text, _ in docstrings())
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


def label() -> list[tuple[Path, Path]]:
    """Writes docstrings with their packages: some sets to learn from, and a fifth of all to be tested on,
    chosen by a hash of the text. (training, held out) of each set."""
    rows = [{"text": text, "label": package} for text, package in docstrings()]
    hashes = [int(hashlib.md5(row["text"].encode()).hexdigest(), 16) % 5 for row in rows]
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    held_out = [row for row, own in zip(rows, hashes) if own == 0]
    others = [rows[i] for i in order if hashes[i]]
    sets = [others[i * LABELLED : (i + 1) * LABELLED] for i in range(SETS)]
    paths = [ROOT / LABELS / f"{name}.jsonl" for name in ("held_out", *map(str, range(SETS)))]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, own in zip(paths, (held_out, *sets)):
        path.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    return [(path, paths[0]) for path in paths[1:]]


def bag_of_words(train: Path, held_out: Path) -> float:
    """The share of held-out docstrings whose package naive Bayes tells, with one added to every count, by the
    pieces that the model sees."""
    from neojax.data import tokenizer as tokenizers

    tokenizer = tokenizers.load(ROOT / DATA / "tokenizer.json")
    rows = [[json.loads(line) for line in path.open(encoding="utf-8")] for path in (train, held_out)]
    names = sorted({row["label"] for row in rows[0]})
    bags, labels = [], []
    for own in rows:
        found = tokenizer.encode_batch([row["text"] for row in own], add_special_tokens=False)
        bags.append(np.stack([np.bincount(text.ids[:SEEN], minlength=2048) for text in found]))
        labels.append(np.array([names.index(row["label"]) for row in own]))
    is_class = labels[0] == np.arange(len(names))[:, None]
    counts = is_class.astype(float) @ bags[0] + 1
    scores = bags[1] @ np.log(counts / counts.sum(axis=1, keepdims=True)).T + np.log(is_class.mean(axis=1))
    return float(np.mean(scores.argmax(axis=1) == labels[1]))


def fine_tune() -> None:
    """Fine-tunes the model, and the same from random weights, on each set, and prints what they tell of
    held-out docstrings."""
    print(f"\n{LABELLED} labelled docstrings: from which package is another?")
    for number, (train, held_out) in enumerate(label()):
        told = {"bag of words": bag_of_words(train, held_out)}
        for name, origin in (("random weights", ""), ("pre-trained", RUN)):
            folder = f"{LABELS}/run-{number}-{name.replace(' ', '-')}"
            words = f"data.train={train} data.validation={held_out} train.init_from={origin}"
            run(f"neojax train {FINE_TUNE} {words} train.run_dir={folder}")
            rows = (ROOT / folder / "metrics.jsonl").read_text().splitlines()
            told[name] = json.loads(rows[-1])["validation_accuracy"]
        print(f"\nset {number + 1}: " + ", ".join(f"{name} {share:.3f}" for name, share in told.items()))


def main() -> None:
    prepare()
    run(f"train.py {CONFIG}")
    compare()
    fine_tune()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
