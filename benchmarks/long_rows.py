"""Attention over rows that are split over devices beside a device's part alone, compiled, not run.

    python benchmarks/long_rows.py [--part 4096] [--heads 12] [--head-dim 64] [--only WORD]

A gradient program of one layer: a row of eight parts on eight devices against a row of one part on one. What
a device holds besides operands and results, and what it sends. For fake CPU devices in float32 and, where
libtpu is installed, for TPU v5e in bfloat16. Of each kind of layer: global (the ring; Splash on TPUs), local,
global with dropout of a tenth of the weights and global with learned keys (the ring; on one device the matrix
of scores), linear (chunks), and `layer`: a global one with the products before and after it, whose weights
have gradients too. A TPU's compiler puts what fits into VMEM, which is no memory of the table; `in HBM`
leaves 8 of a v5e core's 128 MiB to it.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

DEVICES = 8
WINDOW = 256
SLOTS = 16  # learned keys


KINDS = ("global", "local", "dropout", "learned keys", "linear", "layer")
IN_HBM = {"xla_tpu_scoped_vmem_limit_kib": "122880"}


ROWS, STREAM = "batch sequence heads head_dim", "batch sequence embd"
IN, OUT = "embd heads head_dim", "heads head_dim embd"


def layer(kind: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The attention of a layer: queries, keys and values -> the result; of `layer`, the residual stream and
    four weights."""
    import jax
    import jax.numpy as jnp

    from neojax.kernels import linear_attention
    from neojax.kernels.attention import attention
    from neojax.layout.named import Dropout, einsum

    def whole(x: Any, query: Any, key: Any, value: Any, out: Any) -> Any:
        rows = (einsum(f"{STREAM}, {IN} -> {ROWS}", x, weight) for weight in (query, key, value))
        return einsum(f"{ROWS}, {OUT} -> {STREAM}", attention(*rows), out)

    match kind:
        case "layer":
            return whole
        case "linear":
            return lambda *rows: linear_attention.attention(*rows)[0]
        case "dropout":
            return lambda *rows: attention(*rows, dropout=Dropout(0.1, jax.random.key(0)))
        case "learned keys":
            learned = jnp.ones((SLOTS, options["heads"], options["head_dim"]), jnp.float32)
            return partial(attention, memory=(learned, learned))
    return partial(attention, window=WINDOW if kind == "local" else None)


def compiled(devices: list[Any], dtype: str, kind: str, options: Mapping[str, Any], **how: Any) -> Any:
    """The gradient of one layer's attention to a row of a part a device."""
    import jax
    import jax.numpy as jnp

    from neojax.config import MeshConfig
    from neojax.layout import named
    from neojax.layout.mesh import make_layout

    layout = make_layout(MeshConfig(f"row:{len(devices)}", "sequence:row"), devices)
    sizes = {"batch": 1, "sequence": options["part"] * len(devices)}
    sizes |= {name: options[name] for name in ("heads", "head_dim")}
    sizes["embd"] = sizes["heads"] * sizes["head_dim"]

    def array(dims: str) -> Any:
        with named.use_layout(layout):
            sharding = named.sharding(dims)
        return jax.ShapeDtypeStruct([sizes[d] for d in dims.split()], jnp.dtype(dtype), sharding=sharding)

    def gradients(slope: Any, *operands: Any) -> Any:
        with named.use_layout(layout):
            y, pull = jax.vjp(layer(kind, options), *operands)
            return (y, pull(slope)) if kind == "layer" else pull(slope)

    dims = (STREAM, IN, IN, IN, OUT) if kind == "layer" else (ROWS,) * 3
    with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
        return jax.jit(gradients).lower(*map(array, (dims[0], *dims))).compile(**how)


def report(program: Any) -> dict[str, Any]:
    from neojax.plan.hlo import collectives

    sent: Counter[str] = Counter()
    for one in collectives(program.as_text()):
        sent[one.kind] += one.bytes * one.times
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    sizes = {"temporaries": memory.temp_size_in_bytes, "with_operands_and_results": held}
    return {**sizes, "bytes_of_collectives": dict(sent)}


def measured(options: Mapping[str, Any], only: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import importlib.util

    import jax

    places = {"cpu": (jax.devices(), "float32")}
    if importlib.util.find_spec("libtpu") is not None:
        from neojax.layout.topology import tpu_devices

        places["v5e"] = tpu_devices("v5e:2x4"), "bfloat16"
    for place, (devices, dtype) in places.items():
        for kind in KINDS:
            hows = {"": {}, ", in HBM": {"compiler_options": IN_HBM}} if place == "v5e" else {"": {}}
            for name, how in hows.items() if kind in ("global", "linear", "layer") else [("", {})]:
                what = f"{kind}, {place}{name}"
                if only in what:
                    alone, split = (
                        report(compiled(devices[:count], dtype, kind, options, **how))
                        for count in (1, DEVICES)
                    )
                    yield what, {"one": alone, "eight": split}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"part": 4096, "heads": 12, "head-dim": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", default="", help="rows whose names hold it; keeps nothing")
    options = vars(parser.parse_args())
    only = options.pop("only")
    os.environ["JAX_PLATFORMS"] = "cpu"

    from neojax.layout.devices import fake_cpu_devices

    fake_cpu_devices(DEVICES)
    rows = {}
    for what, found in measured(options, only):
        rows[what] = found
        for size in ("temporaries", "with_operands_and_results"):
            one, eight = (found[n][size] for n in ("one", "eight"))
            found[f"{size}_ratio"] = ratio = eight / one if one else None
            sizes = f"{one / 1e6:.1f} MB on one, {eight / 1e6:.1f} MB on eight"
            print(f"{what}, {size}: {sizes}{f': {ratio:.2f}' if ratio else ''}", flush=True)
        print(f"  {found['eight']['bytes_of_collectives']}")
    if not only:
        save("long_rows", {**options, "devices": DEVICES, "window": WINDOW, "slots": SLOTS, "rows": rows})


if __name__ == "__main__":
    main()
