"""The counts of `neojax.plan.count` against the compiler's.

    python benchmarks/model_against_compiler.py [--part memory collectives flops] [--only WORDS ...]

memory: bytes of a chip, of the steps of results/compiled_memory.json, as the compiler has assigned them.
collectives: bytes of gathers and of sums in a step, of those that are kept in results/communication.json;
both compiled for TPU slices. FLOPs of a TPU's program cannot be read from it, since kernels of attention are
closed: flops compiles small models of every family of decoders in layouts of many kinds for 8 CPU devices,
with loops, and counts the products in the optimised program. Writes results/model_against_compiler.json, in
which parts that are not run stay as they are.
"""

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import shapes
from side_by_side import RESULTS, save

DOT = re.compile(r"%?([\w.\-]+) = \w+\[([\d,]*)\]\S* dot\(%?([\w.\-]+), .*?lhs_contracting_dims=\{([\d,]*)\}")
MADE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\]")
COLLECTIVES = ("gathers", "sums", "all-to-alls", "permutes", "transfers")
SMALL = {"n_layer": 4, "n_embd": 64, "n_ctx": 64, "n_vocab": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention": {"heads": 4, "window": 16}},
    "gpt2": {"family": "gpt2", "attention": {"heads": 4}},
    "gpt_neox": {"family": "gpt_neox", "attention": {"heads": 4}, "positions": {"rotary_dims": 4}},
    "gpt_j": {"family": "gpt_j", "attention": {"heads": 4}, "positions": {"rotary_dims": 8}},
    "llama": {"family": "llama", "attention": {"heads": 4, "kv_heads": 2}, "mlp": {"width": 192}},
}
LAYOUTS = {
    "data parallel": ("data:8", "batch:data", ""),
    "stored over all": ("data:8", "batch:data", "embd:data"),
    "stored over 2 of 8": ("copies:4, data:2", "batch:copies+data", "embd:data"),
    "tensor 2": ("data:4, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
    "tensor 4": ("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
    "vocabulary alone": ("data:4, model:2", "batch:data, vocab:model", ""),
    "embd, as gpt-neo's": ("x:4, y:2", "batch:x, embd:y", ""),
}


def tpu_config(options: Mapping[str, Any]) -> Any:
    """The configuration of a row of communication.json."""
    from neojax.config import MeshConfig, TrainConfig, from_dict

    mesh = MeshConfig(
        options["shape"], options["layout"], options["param_layout"], dcn_shape=options["dcn_shape"]
    )
    train = TrainConfig(
        batch_size=options["batch"],
        remat=options["remat"],
        reduce_dtype=options["reduce_dtype"],
        precision="bfloat16",
    )
    model = shapes.ours(options["model"], options["sequence"])
    return replace(from_dict({}), model=model, mesh=mesh, train=train)


def memory_rows(only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every step of which the compiler's assignment is kept: bytes of a chip."""
    import compiled_memory

    from neojax.plan.estimate import analyse

    kept = json.loads((RESULTS / "compiled_memory.json").read_text())["results"]
    for name, row in kept.items():
        if all(word in name for word in only):
            counted = analyse(*compiled_memory.case(name)).work.memory.total
            yield {"case": f"{name}: memory", "memory": (counted, row["needed"])}


def collective_rows(only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every step of which the collectives are kept, with what the model counts of them, by kind."""
    import compiled_memory

    from neojax.plan.estimate import analyse

    kept = json.loads((RESULTS / "communication.json").read_text())["results"]
    steps = {
        name: (tpu_config(row["options"]), row["options"]["topology"], row["collectives"])
        for name, row in kept.items()
        if "failed" not in row and not row["options"]["joined"]
    }
    kept = json.loads((RESULTS / "compiled_memory.json").read_text())["results"]
    steps |= {
        name: (*compiled_memory.case(name), row["collectives"])
        for name, row in kept.items()
        if name not in steps and "collectives" in row
    }
    for name, (config, topology, collectives) in steps.items():
        if not all(word in name for word in only):
            continue
        counted = by_kind(analyse(config, topology))
        compiled: Counter[str] = Counter()
        for one in collectives:
            compiled[kind_of(one["kind"])] += one["bytes"]
        found: dict[str, Any] = {"case": name}
        for kind in COLLECTIVES:
            least = 1e7 if kind == "transfers" else 1e8
            if max(counted[kind], compiled[kind]) > least:
                found[kind] = (counted[kind], compiled[kind])
        yield found


def kind_of(name: str) -> str:
    """A kind of collective as the compiler calls it, and as the rows here do."""
    if name.startswith("transfer") or "between slices" in name:
        return "transfers"
    if "gather" in name:
        return "gathers"
    return "all-to-alls" if name == "all-to-all" else "permutes" if "permute" in name else "sums"


def by_kind(one: Any) -> Counter[str]:
    """Bytes of a step's collectives as the compiler makes them of the model's.

    A sum over slices is one in every slice, of which each chip sends its part to the others, and a gather in
    the slice; without that where each chip keeps a part of what a product gives as it is. Of a gather over
    slices each chip sends what it has.
    """
    from neojax.plan.machine import path, paths
    from neojax.plan.trace import dcn_of

    taken = paths(one.on, dict(one.work.sizes), dcn_of(one.config))
    found: Counter[str] = Counter()
    for each in one.work.transfers:
        way = path(one.on, [part for axis in each.axes for part in taken[axis]])
        size, is_sum = each.bytes * each.times, each.kind == "sum"
        if each.kind == "all-to-all":  # the compiler counts what a chip has of it
            size //= way.devices * way.outer
        if way.devices > 1:
            found[{"gather": "gathers", "sum": "sums"}.get(each.kind, f"{each.kind}s")] += size
        if way.outer > 1:
            found["transfers"] += size / way.devices / (1 if is_sum else way.outer)
            is_kept = set(each.cut) >= set(each.axes) and not each.turned
            if is_sum and way.devices > 1 and not is_kept:
                found["gathers"] += size
    return found


def cpu_rows(only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Small models on 8 devices: FLOPs of products as counted and as compiled."""
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    cases = [
        (f"{family}, {layout}, remat {remat}", own, LAYOUTS[layout], remat)
        for i, (family, own) in enumerate(FAMILIES.items())
        for j, layout in enumerate(LAYOUTS)
        for remat in (("none", "names", "full")[(i + j) % 3],)
    ]
    for name, own, (mesh, used, stored), remat in cases:
        if all(word in name for word in only):
            config = {
                "model": SMALL | own,
                "mesh": {"shape": mesh, "layout": used, "param_layout": stored},
                "train": {
                    "batch_size": 16,
                    "remat": remat,
                    "precision": "float32",
                    "attention_kernel": "xla",
                },
            }
            yield {"case": name, "flops": flops(config)}


def flops(tree: Mapping[str, Any]) -> tuple[float, float]:
    """(FLOPs of a device's products in a step as counted, as compiled for the CPU devices here)."""
    import jax
    import jax.numpy as jnp

    from neojax.config import from_dict
    from neojax.data.batch import Batch
    from neojax.data.share import BATCH_DIMS
    from neojax.layout.mesh import make_layout
    from neojax.models import Transformer
    from neojax.models.compute import Compute
    from neojax.plan.count import count
    from neojax.plan.machine import machine
    from neojax.plan.trace import trace
    from neojax.training.optimizer import make_optimizer
    from neojax.training.state import abstract_state
    from neojax.training.step import make_train_step

    config = from_dict(dict(tree))
    work = count(trace(config, machine(f"v5e:2x{jax.device_count() // 2}")))
    layout = make_layout(config.mesh)
    train = config.train
    compute = Compute("float32", remat=train.remat, unroll=1, attention_kernel=train.attention_kernel)
    model = Transformer(config.model, layout, compute)
    optimizer = make_optimizer(train, model.dims(), config.model.n_vocab)
    shape = (1, train.batch_size, config.model.n_ctx)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.sharding(BATCH_DIMS, shape))
    with jax.set_mesh(layout.mesh):
        step = make_train_step(model, optimizer, train)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        program = step.lower(abstract_state(model, optimizer), Batch(tokens, tokens), number).compile()
    return work.flops, product_flops(program.as_text())


def product_flops(hlo: str) -> float:
    """FLOPs of all products of an optimised program, as often as a step runs them."""
    from neojax.plan.hlo import computations, trips

    bodies = computations(hlo)
    times = trips(bodies)
    total = 0.0
    for name, lines in bodies.items():
        made = {match[1]: match[2] for line in lines if (match := MADE.match(line))}
        for line in lines:
            if match := DOT.search(line):
                left = [int(n) for n in made[match[3]].split(",") if n]
                summed = math.prod(left[int(d)] for d in match[4].split(",") if d)
                result = math.prod(int(n) for n in match[2].split(",") if n)
                total += 2.0 * times[name] * result * summed
    return total


def summary(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of every kind of count: how many there are, and how far off."""
    found = {}
    for what in ("memory", *COLLECTIVES, "flops"):
        for which in ("", ", one slice", ", two slices"):
            own = [
                row[what]
                for name, row in rows.items()
                if what in row and (not which or ("2 " in name[:2]) == ("two" in which))
            ]
            miss = np.abs(np.array(own))
            if own and (not which or what != "flops"):
                found[what + which] = {
                    "cases": len(miss),
                    "median": round(float(np.median(miss)), 4),
                    "within 10 %": round(float(np.mean(miss <= 0.1)), 4),
                    "within 2 %": round(float(np.mean(miss <= 0.02)), 4),
                    "largest": round(float(miss.max()), 4),
                }
    return found


PARTS = {"memory": memory_rows, "collectives": collective_rows, "flops": cpu_rows}
KINDS = {"memory": ("memory",), "collectives": COLLECTIVES, "flops": ("flops",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--only", nargs="*", default=(), help="cases whose names hold these words")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    path = RESULTS / "model_against_compiler.json"
    replaced = {kind for part in args.part for kind in KINDS[part]}
    before = json.loads(path.read_text()) if path.exists() else {"results": {"rows": {}}}
    before = before.get("results", before)["rows"]
    rows = {
        name: own
        for name, row in before.items()
        if (own := {what: off for what, off in row.items() if what not in replaced})
    }
    new = {}
    for part in args.part:
        for row in PARTS[part](args.only):
            pairs = {what: pair for what, pair in row.items() if what != "case"}
            off = {what: round(pair[0] / pair[1] - 1, 4) for what, pair in pairs.items() if pair[1]}
            new[row["case"]] = {**new.get(row["case"], {}), **off}
            told = [f"{what} {share:+.1%}" for what, share in off.items()]
            told += [f"{what} {pair[0]:.3g} for none" for what, pair in pairs.items() if not pair[1]]
            print(f"{row['case']}: {', '.join(told)}", flush=True)
    for what, row in summary(new).items():
        print(what, row)
    if not args.only:
        for name, off in new.items():
            rows[name] = {**rows.get(name, {}), **off}
        note = "off, as a share; steps of slices are compiled, flops of small models on 8 CPU devices"
        save("model_against_compiler", {"note": note, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
