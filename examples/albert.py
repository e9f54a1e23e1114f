"""Pre-trains a small ALBERT on text that every machine with neojax has: the docstrings of Python's standard
library, of NumPy and of JAX.

Prepares them with a tokenizer of unigrams, trains meshconfigs/albert-demo.yml on 8 fake CPU devices on masked
words and on the order of sentences, and prints how well it tells them in held-out docstrings, beside what the
commonest piece and the commonest label get. Run it with `make albert`; run it again and it goes on where it
stopped.
"""

import ast
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
CONFIG = "meshconfigs/albert-demo.yml"
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
    folders += [
        Path(f) for n in PACKAGES if (spec := find_spec(n)) for f in spec.submodule_search_locations or ()
    ]
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


def prepare() -> None:
    """Writes the docstrings as JSON lines, and prepares them."""
    if (ROOT / DATA / "prepared.json").exists():
        return
    (ROOT / TEXT).parent.mkdir(exist_ok=True)
    with (ROOT / TEXT).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in docstrings())
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


def main() -> None:
    prepare()
    run(f"train.py {CONFIG}")
    compare()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
