"""What travels in a training step of `meshconfigs/moe.yml` when its experts are split beside everything else.

    python benchmarks/expert_layouts.py [--topology v5e:4x4] [--only WORDS ...] [--again] [--table]

Compiles the whole step (12 layers, 8 experts in every second one, two rows of 2,048 tokens a chip) for a TPU
slice that is not here, with little effort, for every layout of `ROWS`: its collectives by kind and axes, with
how often a step runs them and their bytes, the memory of a chip, and every array that an all-gather makes
which is no part of a parameter outside the experts. Rows are kept in results/expert_layouts.json as they are
done; those that are there are not compiled again. Needs libtpu (`pip install .[tpu]`).
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import RESULTS, circumstances
from tpu_compile import part_of

CONFIG = Path(__file__).resolve().parents[1] / "meshconfigs" / "moe.yml"
FILE = RESULTS / "expert_layouts.json"
EXPERTS = "batch:data+expert, experts:expert"
KINDS = "all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute"
TENSOR = "heads:model, mlp:model, vocab:model, expert_mlp:model"
ROWS: dict[str, dict[str, str]] = {
    "experts and batch": {"shape": "data:2, expert:8", "layout": EXPERTS},
    "with FSDP of the others (as the file has it)": {
        "shape": "data:2, expert:8",
        "layout": EXPERTS,
        "param_layout": "embd:data",
    },
    "with heads, MLP and vocabulary": {
        "shape": "expert:8, model:2",
        "layout": f"batch:expert, experts:expert, {TENSOR}",
    },
    "the same, and the residual stream": {
        "shape": "expert:8, model:2",
        "layout": f"batch:expert, experts:expert, {TENSOR}, sequence:model",
    },
    "with rows in 8 parts": {
        "shape": "data:2, row:8",
        "layout": "batch:data, sequence:row, experts:row",
        "group_size": "256",
    },
    "in 2 stages of layers": {
        "shape": "stage:2, expert:8",
        "layout": "batch:expert, experts:expert, layers:stage, vocab:stage",
        "microbatch": "16",
    },
    "tokens on each of the experts' devices (gpt-neo's)": {
        "shape": "x:8, y:2",
        "layout": "batch:x, heads:y, vocab:y, mlp:y, experts:y",
    },
}


def measure(row: Mapping[str, str], topology: str) -> dict[str, Any]:
    """Compiles one row and reads what it holds."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from neojax import config as configuration
    from neojax.layout.topology import tpu_devices
    from neojax.plan.compiled import compile_step

    devices = tpu_devices(topology)
    words = [f"mesh.shape={row['shape']}", f"mesh.layout={row['layout']}"]
    words += [f"mesh.param_layout={row.get('param_layout', '')}", f"train.batch_size={2 * len(devices)}"]
    words += [f"train.microbatch={row.get('microbatch', 0)}"]
    words += [f"model.experts.group_size={row['group_size']}"] if "group_size" in row else []
    config = configuration.load(CONFIG, words)
    one = compile_step(config, devices, quick=True)
    shapes = {name: v.shape for name, v in one.model.stored().items()}
    dims = one.model.dims()
    # of a layer; a row of tokens has the shape of the table of positions
    others = (name for name in shapes if not {"experts", "positions"} & set(dims[name]))
    own = {shapes[name]["layers" in dims[name] :] for name in others}
    gathered: dict[str, int] = {}
    for found in one.found:
        if found.kind != "all-gather" and not found.is_gather:
            continue
        for kind, shape in found.arrays:
            true = tuple(n for n in shape if n > 1)
            if not any(part_of(true, tuple(n for n in other if n > 1)) for other in own):
                name = f"{kind}{list(shape)}"
                gathered[name] = gathered.get(name, 0) + found.times
    experts = config.model.experts
    tokens = 2 * config.model.n_ctx * config.model.n_embd * 2  # of a chip's rows, in bfloat16
    layers = sum(config.model.expert_layers)
    # there and back, forward and backward
    floor = 4 * layers * tokens * experts.top_k
    sent = sum(f.times * f.bytes for f in one.found if f.kind == "all-to-all")
    return {
        "options": dict(row),
        "topology": topology,
        "fits": one.fits,
        "bytes_of_a_chip": one.memory.needed if one.memory else None,
        "seconds_to_compile": one.seconds,
        "collectives": [asdict(m) for m in one.moved],
        "gathered_beside_parameters": gathered,
        "all_to_all_over_floor": sent / floor,
    }


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The rows that are there: runs and bytes of a step by kind and axes."""
    yield f"| layout | {' | '.join(KINDS)} | GB a chip |"
    yield "|-|-|-|-|-|-|-|"
    for name in ROWS:
        if not (row := results.get(name)) or "failed" in row:
            continue
        cells = []
        for kind in KINDS:
            by_axes: dict[str, list[float]] = {}
            for one in row["collectives"]:
                if one["kind"] == kind:
                    sums = by_axes.setdefault(one["axes"], [0, 0.0])
                    sums[0] += one["runs"]
                    sums[1] += one["bytes"]
            parts = (f"{axes}: {runs}, {_bytes(size)}" for axes, (runs, size) in by_axes.items())
            cells.append("; ".join(parts) or "-")
        options = row["options"]
        said = f"`{options['shape']}`; `{options['layout']}`"
        said += f"; `{options['param_layout']}`" if options.get("param_layout") else ""
        memory = row["bytes_of_a_chip"] or math.nan
        yield f"| {name}: {said} | {' | '.join(cells)} | {memory / 1e9:.1f} |"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--only", nargs="*", default=(), help="rows by words that their names hold")
    parser.add_argument("--again", action="store_true", help="compile rows that are there already")
    parser.add_argument("--table", action="store_true", help="what is there already, as a table")
    args = parser.parse_args(arguments)
    kept = json.loads(FILE.read_text())["results"] if FILE.exists() else {}
    if args.table:
        print(*table(kept), sep="\n")
        return
    for name, row in ROWS.items():
        if (name in kept and not args.again) or not all(word in name for word in args.only):
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # libtpu does not give its memory back
            try:
                kept[name] = pool.apply(measure, (row, args.topology))
            except Exception as e:
                kept[name] = {"failed": " ".join(str(e).split())[:600]}
        FILE.write_text(json.dumps({**circumstances(), "results": kept}, indent=1) + "\n")
        print(name, {k: v for k, v in kept[name].items() if k not in ("options", "collectives")}, flush=True)


if __name__ == "__main__":
    main()
