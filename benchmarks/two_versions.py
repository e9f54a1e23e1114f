"""Two checkouts of neojax beside each other: the training step, its compilation, decoding and the time to
start.

    python benchmarks/two_versions.py BEFORE AFTER [--only TEXT] [--rounds 5] [--save NAME]

Both train the same configurations through the command line, taking turns in processes of their own, so that
any two versions can be compared whose function of a step is called `train_step`: `jax.jit` is wrapped, and
what it compiles under that name is timed and asked for its memory and operations. Then each samples from the
run that it trained.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

DEMO = {
    "n_layer": 4, "n_embd": 128, "n_head": 8, "n_ctx": 256, "n_vocab": 1024, "window_size": 64,
    "initializer_range": 0.02,
}  # fmt: skip
WIDE = {"n_layer": 4, "n_embd": 768, "n_head": 12, "n_ctx": 512, "n_vocab": 50257}
FAKE = {
    "cpu_devices": 8,
    "shape": "data:4, model:2",
    "layout": "batch:data, heads:model, mlp:model, vocab:model",
    "param_layout": "embd:data",
}
ONE = {"cpu_devices": 1, "shape": "data:1", "layout": ""}
TRAININGS = {  # model, mesh, batch, steps of one turn
    "demo, one device": (DEMO, ONE, 8, 12),
    "demo, 8 fake devices": (DEMO, FAKE, 8, 12),
    "125M wide, 4 layers": (WIDE, ONE, 2, 6),
}
NEW_TOKENS = 128
LOWER = {  # key of a row -> (its name, unit, divisor)
    "step_seconds": ("training step", "ms", 1e-3),
    "compile_seconds": ("compilation of the step", "s", 1),
    "first_step_seconds": ("from the command to the end of the first step", "s", 1),
    "temporary_bytes": ("temporaries of the step", "MB", 1e6),
    "argument_bytes": ("arguments of the step", "MB", 1e6),
    "flops": ("operations of the step", "GFLOP", 1e9),
    "loss": ("loss after the last step", "nats", 1),
    "live_bytes": ("arrays that are alive while sampling", "MB", 1e6),
    "token_seconds_1": ("decoding, batch 1, a token", "ms", 1e-3),
    "token_seconds_8": ("decoding, batch 8, a token", "ms", 1e-3),
    "import_seconds": ("import neojax", "s", 1),
    "help_seconds": ("neojax --help", "s", 1),
}

# The programs of a child. They know of neojax what its users know: the command line, `load` and `generate`.

TRAIN = """
import json, sys, time
began = time.perf_counter()
import jax
jit, found = jax.jit, {}

class Step:
    def __init__(self, function):
        self.function, self.compiled, self.seconds = function, None, []

    def __getattr__(self, name):
        return getattr(self.function, name)

    def __call__(self, *args):
        if self.compiled is None:
            start = time.perf_counter()
            self.compiled = self.function.lower(*args).compile()
            memory, cost = self.compiled.memory_analysis(), self.compiled.cost_analysis()
            found.update(
                compile_seconds=time.perf_counter() - start,
                temporary_bytes=memory.temp_size_in_bytes,
                argument_bytes=memory.argument_size_in_bytes,
                flops=cost["flops"],
            )
        start = time.perf_counter()
        result = jax.block_until_ready(self.compiled(*args))
        self.seconds.append(time.perf_counter() - start)
        found.setdefault("first_step_seconds", time.perf_counter() - began)
        found["steps"] = self.seconds
        return result

def wrapped(function=None, **options):
    if function is None:
        return lambda function: wrapped(function, **options)
    made = jit(function, **options)
    return Step(made) if getattr(function, "__name__", "") == "train_step" else made

jax.jit = wrapped
from neojax.cli import main
status = main(["train", sys.argv[1]])
assert "steps" in found, "no function train_step was compiled by jax.jit"
print(json.dumps(found), file=sys.stderr)
sys.exit(status)
"""
SAMPLE = """
import json, sys, time
import jax
import numpy as np
import neojax
model = neojax.load(sys.argv[1])
new, found = int(sys.argv[2]), {}
for batch in (1, 8):
    prompts = np.random.default_rng(0).integers(0, 1024, (batch, 64)).tolist()
    def once():
        start = time.perf_counter()
        rows = neojax.generate(model, prompts, max_new_tokens=new, temperature=0, eos=(), return_samples=True)
        assert all(len(row.tokens) == new for row in rows)
        return time.perf_counter() - start
    once()
    found[f"tokens_{batch}"] = [once() / new for _ in range(3)]
found["live_bytes"] = sum(array.nbytes for array in jax.live_arrays())
print(json.dumps(found), file=sys.stderr)
"""


def python(checkout: Path, *words: Any, cwd: Path | None = None) -> tuple[float, str]:
    """Runs Python with a checkout's neojax, with huge pages as `neojax train` has them; seconds and the last
    line of its errors."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_FLAGS", "JAX_"))}
    environment |= {
        "PYTHONPATH": str(checkout),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "JAX_PLATFORMS": "cpu",
    }
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(f"error: {checkout}: {result.stderr.strip()}")
    return seconds, result.stderr.strip().rpartition("\n")[2]


def make_data(checkout: Path, folder: Path) -> None:
    """folder/data: the checkout's own source, as tokens below 1024."""
    words = (
        "-m",
        "neojax",
        "prepare",
        checkout / "neojax",
        "--train-tokenizer",
        1024,
        "--out",
        folder / "data",
    )
    python(checkout, *words, "--validation", 0)


def trained(checkout: Path, what: str, folder: Path) -> dict[str, float]:
    """One turn of a checkout: trains in folder/run, from the start."""
    model, mesh, batch, steps = TRAININGS[what]
    train = {"run_dir": str(folder / "run"), "batch_size": batch, "steps": steps, "learning_rate": 1e-3}
    train |= {"warmup_steps": 2, "log_every": steps, "tensorboard": False}
    config = {"model": model, "mesh": mesh, "data": {"train": str(folder.parent / "data")}, "train": train}
    folder.mkdir(parents=True)
    (folder / "config.yml").write_text(json.dumps(config))
    found = json.loads(python(checkout, "-c", TRAIN, folder / "config.yml")[1])
    found["step_seconds"] = statistics.median(found.pop("steps")[1:])
    found["loss"] = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    return found


def sampled(checkout: Path, run: Path) -> dict[str, float]:
    """One turn of decoding."""
    found = json.loads(python(checkout, "-c", SAMPLE, run, NEW_TOKENS)[1])
    seconds = {f"token_seconds_{batch}": statistics.median(found.pop(f"tokens_{batch}")) for batch in (1, 8)}
    return {**seconds, **found}


def started(checkout: Path, folder: Path) -> dict[str, float]:
    """One turn of what is paid before anything happens."""
    return {
        "import_seconds": python(checkout, "-c", "import neojax", cwd=folder)[0],
        "help_seconds": python(checkout, "-m", "neojax", "--help", cwd=folder)[0],
    }


def turns(
    checkouts: dict[str, Path], folder: Path, only: str, rounds: int
) -> Iterator[tuple[str, str, dict]]:
    """(what is measured, whose, its numbers), the checkouts by turns."""
    for turn in range(rounds):
        names = list(checkouts)
        for what in ("start", *TRAININGS):
            if only not in what:
                continue
            for name in names[turn % 2 :] + names[: turn % 2]:
                at = folder / f"{what}-{name}-{turn}"
                if what == "start":
                    yield what, name, started(checkouts[name], folder)
                else:
                    yield what, name, trained(checkouts[name], what, at)
                    yield what, name, sampled(checkouts[name], at / "run")


def report(rows: list[tuple[str, str, dict]]) -> list[dict[str, Any]]:
    """Prints the median of every number before and after, and their ratio; returns them."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for what, name, numbers in rows:
        for key, value in numbers.items():
            values.setdefault((what, key), {}).setdefault(name, []).append(value)
    found, shown = [], None
    for (what, key), sides in sorted(
        values.items(), key=lambda item: (item[0][0], list(LOWER).index(item[0][1]))
    ):
        if what != shown:
            print(f"\n{what:46}{'before':>12} {'after':>12}         after / before")
            shown = what
        label, unit, divisor = LOWER[key]
        before, after = (statistics.median(sides[name]) for name in ("before", "after"))
        print(f"  {label:44}{before / divisor:12.4f} {after / divisor:12.4f} {unit:6} {after / before:10.3f}")
        found.append({"what": what, "of": key, "before": before, "after": after, "rounds": sides})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("--only", default="", metavar="TEXT", help=f"of start, {', '.join(TRAININGS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", metavar="NAME", help="write results/NAME.json")
    options = parser.parse_args()
    checkouts = {"before": options.before.resolve(), "after": options.after.resolve()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_data(checkouts["before"], folder)
        rows = []
        for what, name, numbers in turns(checkouts, folder, options.only, options.rounds):
            print(f"{what}, {name}: {numbers}", flush=True)
            rows.append((what, name, numbers))
    results = report(rows)
    if options.save:
        save(options.save, results)


if __name__ == "__main__":
    main()
