"""The bytes that the compiler assigns to a chip for training steps of many kinds, beside the model's counts.

    python benchmarks/compiled_memory.py [--only WORDS ...] [--again] [--table]

Compiles a step, with little effort, for every row of `FILES` (a shipped configuration, a slice, what is
changed) and of `KEPT` (rows of communication.json), and reads what `neojax plan` reads: the compiler's own
assignment of buffers. `memory_analysis()` is above that on TPUs, by the donated state and more. Rows are
kept in results/compiled_memory.json as they are done. Needs libtpu (`pip install .[tpu]`).
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import RESULTS, circumstances

CONFIGS = Path(__file__).resolve().parents[1] / "meshconfigs"
STORED = ("mesh.shape=data:-1", "mesh.layout=batch:data", "mesh.param_layout=embd:data")
TENSOR = ("mesh.layout=batch:data, heads:model, mlp:model, vocab:model", "mesh.param_layout=embd:data")
SEQUENCE = ("mesh.layout=batch:data, heads:model, mlp:model, vocab:model, sequence:model", TENSOR[1])
ACROSS = ("mesh.shape=slices:2, data:-1", "mesh.dcn_shape=slices:2", "mesh.layout=batch:slices+data")
FILES: dict[str, tuple[str, str, Sequence[str]]] = {
    "125M, as it is": ("125M", "v5e:4x4", ()),
    "125M, stored, whole blocks again": ("125M", "v5e:4x4", (*STORED, "train.remat=full")),
    "125M, stored, nothing again": ("125M", "v5e:4x4", (*STORED, "train.remat=none", "train.batch_size=128")),
    "125M, microbatches, nothing again": (
        "125M", "v5e:4x4", (*STORED, "train.remat=none", "train.batch_size=256", "train.microbatch=64"),
    ),
    "125M, tensor 2": ("125M", "v5e:4x4", ("mesh.shape=data:8, model:2", *TENSOR)),
    "125M, tensor 2 and sequence": ("125M", "v5e:4x4", ("mesh.shape=data:8, model:2", *SEQUENCE)),
    "125M, v6e": ("125M", "v6e:4x4", STORED),
    "350M, whole blocks again": ("350M", "v5e:4x4", (*STORED, "train.remat=full")),
    "1.3B, 32 rows": ("1.3B", "v5e:4x4", ("train.batch_size=32",)),
    "1.3B, stored, whole blocks again": (
        "1.3B", "v5e:8x8", (*STORED, "train.remat=full", "train.batch_size=512"),
    ),
    "1.3B, v4": ("1.3B", "v4:4x4x4", (*STORED, "train.batch_size=512")),
    "2.7B, stored, whole blocks again": ("2.7B", "v5e:8x8", (*STORED, "train.remat=full")),
    "2.7B, stored, microbatches": ("2.7B", "v5e:8x8", (*STORED, "train.remat=names", "train.microbatch=128")),
    "2.7B, tensor 4": ("2.7B", "v5e:8x8", ("mesh.shape=data:-1, model:4", *TENSOR)),
    "GPT-3 6.7B, as it is": ("gpt3/6.7B", "v5e:8x16", ()),
    "GPT-3 6.7B, v4": ("gpt3/6.7B", "v4:4x4x4", ()),
    "GPT-3 6.7B, v5p": ("gpt3/6.7B", "v5p:2x4x4", ()),
    "Pythia 160M, as it is": ("pythia/160M", "v5e:4x4", ()),
    "Pythia 1.4B, as it is": ("pythia/1.4B", "v5e:8x8", ()),
    "Llama 3 8B, as it is": ("llama/3-8B", "v5p:4x4x4", ()),
    "Llama 2 7B, as it is": ("llama/2-7B", "v5e:8x16", ()),
    "TinyLlama 1.1B, stored": ("llama/TinyLlama-1.1B", "v5e:4x8", STORED),
    "BERT base, as it is": ("bert/base", "v5e:4x4", ()),
    "BERT large, as it is": ("bert/large", "v5e:4x4", ()),
    "ALBERT base, as it is": ("albert/base", "v5e:4x4", ()),
    "experts, as it is": ("moe", "v5e:4x8", ()),
    "2 slices, 125M, stored in each": ("125M", "2xv5e:4x4", (*ACROSS, "mesh.param_layout=embd:data")),
    "2 slices, 350M, stored over both": (
        "350M", "2xv5e:4x4", (*ACROSS, "mesh.param_layout=embd:slices+data"),
    ),
}  # fmt: skip
KEPT = (
    "v5e-256 125M data parallel", "v5e-256 125M one axis", "v5e-256 125M stored over x of x+y",
    "v5p-128 125M one axis", "v5e-256 350M data parallel", "v5e-256 350M one axis",
    "v6e-256 350M data parallel", "v5p-128 350M one axis", "v5e-256 1.3B one axis",
    "v5e-256 1.3B stored over x of x+y", "v5e-256 1.3B tensor 2", "v5e-256 1.3B tensor 4",
    "v5p-128 1.3B one axis", "v5p-128 1.3B stored over 16 of 64", "v5e-256 2.7B one axis",
    "v5e-256 2.7B tensor 4", "v5p-128 2.7B tensor 4", "2 x v5e-64 125M data parallel over slices",
    "2 x v5e-64 350M copies on slices", "2 x v5e-64 1.3B copies on slices",
)  # fmt: skip


def case(name: str) -> tuple[Any, str]:
    """(the configuration, the slice) of a row."""
    from model_against_compiler import tpu_config

    from neojax import config as configuration

    if name in FILES:
        file, topology, words = FILES[name]
        return configuration.load(CONFIGS / f"{file}.yml", list(words)), topology
    options = json.loads((RESULTS / "communication.json").read_text())["results"][name]["options"]
    return tpu_config(options), options["topology"]


def measure(name: str) -> dict[str, Any]:
    """What the compiler assigns to one chip."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from neojax.layout.topology import tpu_devices
    from neojax.plan.compiled import compile_step

    config, topology = case(name)
    one = compile_step(config, tpu_devices(topology), quick=True)
    assert one.memory is not None
    own: dict[str, Any] = {
        "needed": one.memory.needed,
        "arguments": one.memory.arguments,
        "unused": one.memory.unused,
    }
    own |= {"kept": one.memory.kept, "available": one.available, "fits": one.fits}
    own |= {"kinds": one.memory.kinds, "largest": [(b.bytes, b.holds) for b in one.memory.largest]}
    return own | {"collectives": [asdict(row) for row in one.moved], "seconds": round(one.seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=(), help="rows by name, or by words that their names hold"
    )
    parser.add_argument("--again", action="store_true", help="compile rows that are there already")
    parser.add_argument("--table", action="store_true", help="rows that are there beside the model's counts")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    path = RESULTS / "compiled_memory.json"
    kept = json.loads(path.read_text()) if path.exists() else {"results": {}}
    exact = {name for name in args.only if name in (*FILES, *KEPT)}
    for name in (*FILES, *KEPT):
        chosen = name in exact if exact else all(word in name for word in args.only)
        if not chosen or args.table:
            continue
        if name in kept["results"] and not args.again:
            continue
        start = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # libtpu does not give its memory back
            row = pool.apply(measure, (name,))
        kept = json.loads(path.read_text()) if path.exists() else {"results": {}}
        kept = {**circumstances(), "results": {**kept["results"], name: row}}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"{name}: {json.dumps(row)}, {time.perf_counter() - start:.0f} s", flush=True)
    if args.table:
        from neojax.plan.estimate import analyse

        for name, row in kept["results"].items():
            mine = analyse(*case(name)).work.memory
            print(
                f"{name}: {mine.total / 1e9:.2f} counted, {row['needed'] / 1e9:.2f} assigned, "
                f"{mine.total / row['needed'] - 1:+.1%}"
            )


if __name__ == "__main__":
    main()
