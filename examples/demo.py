"""The main job on text that every machine has: the source of Python's own standard library.

Prepares it, trains meshconfigs/demo.yml on 8 fake CPU devices, compares the held-out loss with a bigram
model's and prints a few continuations. Run it with `make demo`; run it again and it goes on where it stopped.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA, RUN = "demo/data", "demo/run"
PACKAGES = (
    "asyncio collections concurrent email html http importlib json logging multiprocessing unittest urllib "
    "xml"
)
PROMPTS = ["def __init__(self", "import os\n", "class Test"]


def run(*command: str) -> None:
    """Shows a command as a user would type it, and runs it."""
    print(f"\n$ {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command[1:]] if command[0] == "python" else command, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.returncode)


def prepare() -> None:
    """Tokenizes the standard library, holding out a twentieth of its files."""
    if (ROOT / DATA / "prepared.json").exists():
        return
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [str(library / "*.py"), *(str(library / name) for name in PACKAGES.split())]
    options = ["--out", DATA, "--train-tokenizer", "1024", "--validation", "0.05"]
    print(f"\n$ neojax prepare {library}/*.py ... {' '.join(options)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "neojax", "prepare", *sources, *options], cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.returncode)


def compare() -> None:
    """Prints the held-out loss beside that of a smoothed bigram model of the same tokens."""
    from neojax.data.store import TokenStore
    from neojax.evaluate.bigram import bigram_loss

    rows = [json.loads(line) for line in (ROOT / RUN / "metrics.jsonl").read_text().splitlines()]
    ours = next(row["validation_loss"] for row in reversed(rows) if "validation_loss" in row)
    bigram = bigram_loss(TokenStore(ROOT / DATA / "train"), TokenStore(ROOT / DATA / "validation"), 1024)
    print(f"\nheld-out loss, nats per token: smoothed bigram {bigram:.3f}, this model {ours:.3f}", end="")
    print(f" ({bigram - ours:.3f} lower)", flush=True)


def main() -> None:
    prepare()
    run("python", "train.py", "meshconfigs/demo.yml")
    compare()
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    run(
        "python",
        "sample.py",
        RUN,
        *prompts,
        "--max-new-tokens",
        "60",
        "--temperature",
        "0.8",
        "--top-p",
        "0.95",
    )


if __name__ == "__main__":
    main()
