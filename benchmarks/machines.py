"""The smallest machine of every kind on which each shipped configuration fits as it is, and how long its run
would take there.

    python benchmarks/machines.py [--only NAME ...] [--chips CHIP ...] [--model] [--again] [--table]

Sizes of slices are tried from the smallest on: the analytic model says which may fit, and the step is then
compiled for TPUs (as `neojax plan --quick`, whose temporaries are up to a third more than those of a whole
compilation), until one fits; those that do not are kept as `missed`. GPUs are by the model alone, with a
tenth of their memory left, and so is --model, which replaces no row that is compiled. Rows are kept in
results/machines.json as they are done. Needs libtpu (`pip install .[tpu]`).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import RESULTS, circumstances

CONFIGS = Path(__file__).resolve().parents[1] / "meshconfigs"
NAMES = (
    "125M", "350M", "1.3B", "2.7B", "gpt3/6.7B", "gpt3/13B", "gpt3/175B", "gpt_j/6B", "neox/20B", "moe",
    "pythia/160M", "pythia/1.4B", "pythia/6.9B", "pythia/12B", "llama/3-8B", "bert/base", "bert/large",
    "albert/xxlarge",
)  # fmt: skip
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
NODES = ("8", "16", "32", "64", "128", "256", "512", "1024")
MACHINES = {"v5e": FLAT, "v4": CUBE, "v5p": CUBE, "v6e": FLAT, "h100": NODES, "h200": NODES}
GPUS = ("h100", "h200")
SLACK = 1.15  # what the model says may be so much too high
SURE = 0.9  # of the memory, by the model, where nothing is compiled


def smallest(name: str, chip: str, modelled: bool) -> dict[str, Any]:
    """The smallest machine of `chip` on which a configuration fits; `none` where none does. modelled: by the
    model alone, with a tenth of the memory left."""
    from neojax import config as configuration
    from neojax.errors import NeojaxError
    from neojax.plan.apart import compile_apart
    from neojax.plan.estimate import analyse

    path, refused = CONFIGS / f"{name}.yml", ""
    missed: list[dict[str, Any]] = []
    config = configuration.load(path)
    for size in MACHINES[chip]:
        topology = f"{chip}:{size}"
        try:
            found = analyse(config, topology)
        except NeojaxError as e:  # the layout does not divide
            refused = str(e)
            continue
        need, room = found.work.memory.total, found.room
        is_modelled = modelled or not found.on.chip.axes
        if need > room * (SURE if is_modelled else SLACK):
            continue
        row = {
            "topology": topology,
            "needed": need,
            "available": room,
            "compiled": False,
            "days": config.train.steps * found.estimate.seconds / 86400,
            "tokens_per_second": found.estimate.tokens_per_second,
            "mfu": found.estimate.mfu,
        }
        if is_modelled:
            return row
        start = time.perf_counter()
        answer = compile_apart(config, topology)
        assert answer is not None and answer.memory is not None
        own = {"needed": answer.memory.needed, "by_the_model": need, "compiled": True}
        own["minutes"] = (time.perf_counter() - start) / 60
        if answer.fits:
            return {**row, **own} | ({"missed": missed} if missed else {})
        missed.append({"topology": topology, "available": room, **own})
    none = {"none": refused or "too little memory on every size", "compiled": not modelled}
    return none | ({"missed": missed} if missed else {})


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The rows that are there, as the table of meshconfigs/README.md; bold: compiled."""
    yield "| file | " + " | ".join(MACHINES) + " |"
    yield "|-|" + "-|" * len(MACHINES)
    for name in NAMES:
        cells = []
        for chip in MACHINES:
            row = results.get(f"{name} {chip}", {})
            if "topology" not in row:
                cells.append("" if not row else "-")
                continue
            size = row["topology"].partition(":")[2]
            size = f"**{size}**" if row["compiled"] else size
            used = row["needed"] / row["available"]
            cells.append(f"{size}: {100 * used:.0f} %, {days(row['days'])}")
        if any(cells):
            yield f"| `{name}.yml` | " + " | ".join(cells) + " |"


def days(count: float) -> str:
    """A time in words."""
    return (
        f"{count:.0f} days" if count >= 9.5 else f"{count:.1f} days" if count >= 1 else f"{24 * count:.0f} h"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=NAMES, help="names of configurations")
    parser.add_argument("--chips", nargs="*", default=list(MACHINES), help="such as v5e")
    parser.add_argument(
        "--model", action="store_true", help="by the analytic model alone, in a minute or two"
    )
    parser.add_argument("--again", action="store_true", help="what is there already, too")
    parser.add_argument("--table", action="store_true", help="what is there already, as a table")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    path = RESULTS / "machines.json"
    kept = json.loads(path.read_text()) if path.exists() else {"results": {}}
    if args.table:
        print(*table(kept["results"]), sep="\n")
        return
    for name in args.only:
        for chip in args.chips:
            key = f"{name} {chip}"
            own = kept["results"].get(key)
            is_compiled = own is not None and own["compiled"]
            is_done = own is not None and (is_compiled or args.model or chip in GPUS)
            if is_done and (not args.again or (is_compiled and args.model)):
                continue
            row = smallest(name, chip, args.model)
            kept = json.loads(path.read_text()) if path.exists() else {"results": {}}
            kept = {**circumstances(), "results": {**kept["results"], key: row}}
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(key, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
