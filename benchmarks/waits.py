"""Waits that should be short: seconds until the command line answers, until the first batch of a late step,
and for the loss of pairs of tokens that a run is compared with, over millions of them.

    python benchmarks/waits.py [--rounds 5]

Each is measured in turn, round by round; medians are printed. An answer includes the start of Python, whose
own time is beside it; a late step is compared with the first.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from neojax.config import DataConfig, SourceConfig
from neojax.data.loader import train_batches
from neojax.data.store import StoreWriter, TokenStore
from neojax.evaluate.bigram import bigram_loss

VOCAB, TOKENS = 50_000, 3_000_000


def stores(folder: Path) -> list[str]:
    """Training and held-out tokens, as frequent as words are."""
    tokens = np.random.default_rng(0).zipf(1.2, TOKENS) % VOCAB
    for name, part in (("train", tokens), ("held-out", tokens[:100_000])):
        with StoreWriter(folder / name, VOCAB) as writer:
            writer.add(part, np.full(len(part) // 1000, 1000, np.int32))
    return [str(folder / "train"), str(folder / "held-out")]


def waits(train: str, held_out: str) -> dict[str, Callable[[], object]]:
    def run(*args: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *args], check=True, capture_output=True)

    data = DataConfig(train=(SourceConfig(train),))
    return {
        "python -c pass": run("-c", "pass"),
        "neojax --help": run("-m", "neojax", "--help"),
        "neojax inspect --keys": run("-m", "neojax", "inspect", "--keys"),
        "first batch, step 0": lambda: next(train_batches(data, 1024, 8, seed=0)),
        "first batch, step 10^12": lambda: next(train_batches(data, 1024, 8, seed=0, start_step=10**12)),
        f"loss of pairs, {TOKENS:,} tokens": lambda: bigram_loss(
            TokenStore(train), TokenStore(held_out), VOCAB
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        measured = waits(*stores(Path(folder)))
        seconds: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(rounds):
            for name, once in measured.items():
                began = time.perf_counter()
                once()
                seconds[name].append(time.perf_counter() - began)
    for name, times in seconds.items():
        print(f"{name:<32} {statistics.median(times):8.3f} s")


if __name__ == "__main__":
    main()
