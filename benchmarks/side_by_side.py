"""Contenders measured against each other in one run: each in a process of its own, taking turns.

A contender is a function that gets options, sets itself up (loads, compiles, warms up) and returns `once`,
which does one round of work and returns the number of tokens it handled. Only one contender works at a time,
the order turns from round to round, and medians are compared, so that a noisy machine is noisy for all.
"""

import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

RESULTS = Path(__file__).parent / "results"
Contender = Callable[[Mapping[str, Any]], Callable[[], int]]


def _serve(make: Contender, options: Mapping[str, Any], pipe: Connection) -> None:
    once = make(options)
    pipe.send("ready")
    while pipe.recv() == "go":
        # not timed: what a process that was idle left in caches, and in memory that a host reclaims, is cold
        once()
        start, busy = time.perf_counter(), time.process_time()
        tokens = once()
        pipe.send((tokens / (time.perf_counter() - start), tokens / (time.process_time() - busy)))


def measure(
    contenders: Mapping[str, Contender],
    options: Mapping[str, Any],
    rounds: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, list[float]]:
    """Tokens per second of every contender in every round; `environments` are variables that some start
    with."""
    rates = measure_both(contenders, options, rounds, environments)
    return {name: [elapsed for elapsed, _ in found] for name, found in rates.items()}


def measure_both(
    contenders: Mapping[str, Contender],
    options: Mapping[str, Any],
    rounds: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """As `measure`: tokens per second that passed, and per second of a processor that the contender took,
    which other programs on the machine change less."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, make in contenders.items():  # set up one after another: compilers are hungry
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(make, options, theirs), daemon=True)
        own = (environments or {}).get(name, {})
        with mock.patch.dict(os.environ, own):
            process.start()
        theirs.close()
        assert ours.recv() == "ready"
        pipes[name] = ours
        processes.append(process)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(rounds):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            pipes[name].send("go")
            rates[name].append(pipes[name].recv())
    for pipe, process in zip(pipes.values(), processes):
        pipe.send("stop")
        process.join(10)
    return rates


def report(title: str, rates: Mapping[str, list[float]], baseline: str) -> dict[str, Any]:
    """Prints median tokens/s and the ratio to `baseline`; returns them."""
    base = statistics.median(rates[baseline])
    print(f"\n{title}")
    rows = {}
    for name, values in rates.items():
        median = statistics.median(values)
        rows[name] = {"tokens_per_second": median, "ratio": median / base, "rounds": values}
        spread = f"{min(values):,.1f} to {max(values):,.1f}"
        print(f"  {name:34} {median:12,.1f} tokens/s  {median / base:6.2f}x   ({spread})", flush=True)
    return {"title": title, "baseline": baseline, "contenders": rows}


def save(name: str, results: Any) -> None:
    """Writes results/NAME.json with the date, the machine and the versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**circumstances(), "results": results}, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(Path(__file__).parent.parent)}")


def circumstances() -> dict[str, Any]:
    """The date, the machine and the versions of what takes part."""
    packages = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax")
    packages += ("torch", "transformers", "tokenizers", "datasets", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = {"cores": os.cpu_count(), "processor": processor(), "python": platform.python_version()}
    return {"date": datetime.date.today().isoformat(), "machine": machine, "versions": versions}


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.machine())
