"""Tokens/s of the loader, and MB/s of `neojax prepare` against datasets' `map` and the bare tokenizers
library.

    pip install -e '.[bench]'
    python benchmarks/input.py --tokenizer tokenizer.json [--megabytes 6] [--rounds 5]

The loader reads a shuffled mixture of three memory-mapped stores, as the training loop does. Text is the
source of Python's own standard library, one JSON object a document. `prepare` is timed from the file to
finished stores, its encoding processes' start included; `map` (in as many processes as there are cores, and
in one with the library's own threads) from a data set that is loaded already to one that is written; the bare
library, on all cores, from texts in memory to encodings in memory.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

CONTEXT, BATCH = 2048, 8
STORE = 20_000_000  # tokens in each store of the mixture
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_rates(folder: Path, rounds: int) -> list[float]:
    """Tokens/s of the training loop's batches, over about ten million tokens a round."""
    import numpy as np

    from neojax.config import DataConfig, SourceConfig
    from neojax.data.loader import train_batches
    from neojax.data.store import StoreWriter

    sources = []
    for i, weight in enumerate((1.0, 2.0, 0.5)):
        with StoreWriter(folder / f"store{i}", 50257) as writer:
            tokens = np.random.default_rng(i).integers(0, 50257, STORE)
            writer.add(tokens, np.full(STORE // 1000, 1000, np.int32))
        sources.append(SourceConfig(str(folder / f"store{i}"), weight))
    batches = train_batches(DataConfig(train=tuple(sources)), CONTEXT, BATCH, seed=0)
    rates = []
    count = 10_000_000 // (CONTEXT * BATCH)
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        rates.append(count * CONTEXT * BATCH / (time.perf_counter() - start))
    return rates


def documents(limit: int) -> Iterator[str]:
    """Files of the standard library, spread over it, until they are `limit` bytes."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in library.rglob("*.py") if "site-packages" not in p.parts)
    size = 0
    for file in (file for offset in range(7) for file in files[offset::7]):
        raw = file.read_bytes()
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            continue
        if text:
            yield text
            size += len(raw)
        if size >= limit:
            return


def contenders(folder: Path, tokenizer_file: str, texts: list[str]) -> dict[str, Callable[[], float]]:
    """Each encodes all texts and returns the seconds that took."""
    import datasets
    from tokenizers import Tokenizer

    from neojax.data.prepare import prepare

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = Tokenizer.from_file(tokenizer_file)
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = datasets.Dataset.from_json(str(source), cache_dir=str(folder / "cache"))

    def encode(rows: dict[str, Any]) -> dict[str, Any]:
        return {"ids": [e.ids for e in tokenizer.encode_batch(rows["text"], add_special_tokens=False)]}

    def timed(work: Callable[[], Any], threads: bool) -> float:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads else "false"
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def ours() -> float:
        out = folder / "prepared"
        shutil.rmtree(out, ignore_errors=True)
        return timed(lambda: prepare([source], out, tokenizer=tokenizer_file), False)

    def mapped(processes: int | None) -> float:
        options = {"batched": True, "num_proc": processes, "remove_columns": ["text"]}
        return timed(lambda: table.map(encode, **options), processes is None)

    return {
        "neojax prepare": ours,
        f"datasets map, {CORES} processes": lambda: mapped(CORES),
        "datasets map, threads": lambda: mapped(None),
        "tokenizers encode_batch": lambda: timed(
            lambda: tokenizer.encode_batch(texts, add_special_tokens=False), True
        ),
        "tokenizers encode_batch_fast": lambda: timed(
            lambda: tokenizer.encode_batch_fast(texts, add_special_tokens=False), True
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    parser.add_argument("--megabytes", type=float, default=6, help="of text")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rates = loader_rates(folder, options.rounds)
        loader = statistics.median(rates)
        print(f"loader: {loader / 1e6:.1f} million tokens/s, batch {BATCH} x {CONTEXT}, 3 stores", flush=True)
        texts = list(documents(int(options.megabytes * 1e6)))
        size = sum(len(text.encode()) for text in texts)
        found: dict[str, list[float]] = {}
        works = contenders(folder, options.tokenizer, texts)
        for turn in range(options.rounds):
            names = list(works)
            for what in names[turn % len(names) :] + names[: turn % len(names)]:
                found.setdefault(what, []).append(size / works[what]())
    medians = {what: statistics.median(values) for what, values in found.items()}
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, on {CORES} cores")
    for what in works:
        ratio = medians["neojax prepare"] / medians[what]
        print(f"  {what:32} {medians[what] / 1e6:6.2f} MB/s; neojax prepare is {ratio:.2f} times as fast")
    encoding = {what: {"bytes_per_second": medians[what], "rounds": found[what]} for what in works}
    about = {"documents": len(texts), "bytes": size, "cores": CORES, "contenders": encoding}
    save("input", {"loader_tokens_per_second": {"median": loader, "rounds": rates}, "prepare": about})


if __name__ == "__main__":
    main()
