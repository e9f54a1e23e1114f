"""What travels between the chips in a training step, for TPU slices that are not here, and how long it would
take.

    python benchmarks/communication.py [--only WORDS ...] [--again] [--list] [--table]

Compiles the real training step of a published shape for every row of `ROWS`: a slice, a layout, options.
Shows the bytes of each kind of collective over each axis of the mesh, whether computation runs beside it,
what crosses slices, the memory of a chip, and a modelled time of the step:

    step = max(compute, beside) + alone

compute: the model's FLOPs (and those of recomputed blocks) over the chip's peak. beside: collectives that the
compiler runs beside products. alone: all others. Their times are those of `links.py`, a model of the links'
bandwidths. No product reaches a chip's peak, so the share of communication is an upper bound; `share_at_60`
is that with products at 60 %. Rows are kept in results/communication.json as they are done; those that are
there are not compiled again.

`effort: -1` compiles in a tenth of the time: the same collectives and bytes, but none beside products; there
those that the compiler has marked as asynchronous, within loops, count as beside. Needs libtpu (`pip install
.[tpu]`).
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import links
from side_by_side import RESULTS, circumstances

from neojax.plan.hlo import Collective, collectives

DEFAULTS = {
    "sequence": 2048,
    "batch": 512,
    "remat": "names",
    "reduce_dtype": "float32",
    "kernel": "auto",
    "shape": "data:-1",
    "dcn_shape": "",
    "layout": "batch:data",
    "param_layout": "embd:data",
    "joined": False,
    "compiler_options": (),
    "effort": -1.0,
}


def rows() -> dict[str, dict[str, Any]]:
    """Every row by its name: what `tpu_compile.compiled` takes."""
    from communication_rows import ROWS

    return {name: {**DEFAULTS, **row} for name, row in ROWS.items()}


def measure(options: Mapping[str, Any]) -> dict[str, Any]:
    """Compiles one row and reads what it holds."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import tpu_compile

    model, program, taken = tpu_compile.compiled(options)
    hlo = program.as_text()
    memory = program.memory_analysis()
    # What the donated state comes back in is no more memory.
    own = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
    marked = options["effort"] < 0
    return {
        "seconds_to_compile": taken["compile"],
        "bytes_per_chip": own,
        **timed(collectives(hlo), model, options, marked),
    }


def timed(
    found: Sequence[Collective], model: Any, options: Mapping[str, Any], marked: bool
) -> dict[str, Any]:
    """The collectives of a step by kind, axes and type, and the modelled time of the step in milliseconds."""
    from neojax.layout.chips import CHIPS, peak_flops
    from neojax.models.flops import flops_per_token, forward_flops_per_token
    from neojax.plan.places import Places

    mesh = model.layout.mesh
    chip = CHIPS[options["topology"].rpartition(":")[0].lstrip("0123456789").lstrip("x")]
    place = Places(mesh)
    kinds: dict[tuple[Any, ...], dict[str, float]] = {}
    total = {"beside": 0.0, "alone": 0.0, "network": 0.0}
    for one in found:
        beside = one.beside or (marked and one.is_marked and one.times > 1)
        group = max(one.groups, key=lambda g: links.seconds(one, place.of(g), place.dims, chip), default=())
        took = 1e3 * one.times * links.seconds(one, place.of(group), place.dims, chip)
        total["network" if one.kind == "transfer" else "beside" if beside else "alone"] += took
        name = "all-reduce for a gather" if one.is_gather else one.kind
        if one.kind == "transfer":
            name = f"transfer {one.operation}"
        types = "+".join(sorted({kind for kind, _ in one.arrays}))
        key = (name, place.axes(group) if group else place.network, types, beside)
        row = kinds.setdefault(key, {"runs": 0, "bytes": 0, "ms": 0.0})
        row["runs"] += one.times
        row["bytes"] += one.times * one.bytes
        row["ms"] += took
    tokens = options["batch"] * options["sequence"] / mesh.size
    flops = flops_per_token(model.config)
    if options["remat"] == "full":
        flops += forward_flops_per_token(model.config)
    compute = 1e3 * tokens * flops / (peak_flops(model.layout.device) or 1)
    crossing = total["alone"] + total["network"]
    step = max(compute, total["beside"]) + crossing
    slower = max(compute / 0.6, total["beside"]) + crossing
    columns = ("kind", "axes", "type", "beside")
    return {
        "collectives": [
            {**dict(zip(columns, key)), **row}
            for key, row in sorted(kinds.items(), key=lambda item: -item[1]["ms"])
        ],
        "ms": {"compute": compute, **total, "step": step},
        "share": 1 - compute / step,
        "share_at_60": 1 - compute / 0.6 / slower,
    }


def commit() -> str:
    """The commit of the code that is compiled, with a + where it was changed since."""
    import neojax

    at = Path(neojax.__file__).parent
    run = ["git", "-C", str(at), "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def chosen(only: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows whose names hold all the words; one alone where a whole name is given."""
    known = rows()
    exact = {name for name in only if name in known}
    yield from (
        (n, row) for n, row in known.items() if n in exact or (not exact and all(w in n for w in only))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=(), help="rows by name, or by words that their names hold"
    )
    parser.add_argument("--again", action="store_true", help="compile rows that are there already")
    parser.add_argument("--list", action="store_true", help="the rows' names alone")
    parser.add_argument(
        "--table", action="store_true", help="what is there already, as the table of results/README.md"
    )
    args = parser.parse_args()
    path = RESULTS / "communication.json"
    kept = json.loads(path.read_text()) if path.exists() else {"results": {}}
    if args.table:
        print(*table(kept["results"]), sep="\n")
        return
    for name, options in chosen(args.only):
        if args.list or (name in kept["results"] and not args.again):
            print(name)
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # libtpu does not give its memory back
            try:
                row = pool.apply(measure, (options,))
            except Exception as e:
                row = {"failed": " ".join(str(e).split())[:600]}
        row = {"options": options, "code": commit(), **row}
        kept = json.loads(path.read_text()) if path.exists() else {"results": {}}
        kept = {**circumstances(), "results": {**kept["results"], name: row}}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(line(name, row), flush=True)


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The rows that are there, in the order of `rows`: milliseconds of a step, and bytes that travel in it by
    kind."""
    yield "| slice, model, layout | products | beside | alone | network | step | GB a chip | gathers; sums GB |"  # noqa: E501
    yield "|-|-|-|-|-|-|-|-|"
    for name in rows():
        row = results.get(name)
        if not row or "failed" in row:
            continue
        ms = " | ".join(
            f"{row['ms'][what]:.1f}" for what in ("compute", "beside", "alone", "network", "step")
        )
        gathers, sums = (
            sum(one["bytes"] for one in row["collectives"] if ("gather" in one["kind"]) == is_gather) / 1e9
            for is_gather in (True, False)
        )
        own = row["bytes_per_chip"]
        memory = f"{sum(own.values()) / 1e9:.1f}" if own else "not kept"
        yield f"| {name} | {ms} | {memory} | {gathers:.1f}; {sums:.1f} |"


def line(name: str, row: Mapping[str, Any]) -> str:
    """A row in one line."""
    if "failed" in row:
        return f"{name}: {row['failed'][:150]}"
    ms = " ".join(f"{what} {value:.1f}" for what, value in row["ms"].items())
    memory = " ".join(f"{what} {value / 1e9:.2f}" for what, value in row["bytes_per_chip"].items())
    return f"{name}: ms {ms}; GB {memory}; share {row['share']:.2f}, at 60 % {row['share_at_60']:.2f}"


if __name__ == "__main__":
    main()
