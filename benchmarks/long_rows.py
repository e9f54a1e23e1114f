"""Attention over rows that are split over devices beside a device's part alone, compiled, not run.

    python benchmarks/long_rows.py [--part 4096] [--heads 12] [--head-dim 64]

A gradient program of one layer: a row of eight parts on eight devices against a row of one part on one. What
a device holds besides operands and results, and what it sends. For fake CPU devices in float32 (the ring)
and, where libtpu is installed, for TPU v5e in bfloat16 (Splash).
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

DEVICES = 8
WINDOW = 256


def compiled(devices: list[Any], dtype: str, window: int | None, options: Mapping[str, Any]) -> Any:
    """The gradient of one layer's attention to a row of a part a device."""
    import jax
    import jax.numpy as jnp

    from neojax.config import MeshConfig
    from neojax.kernels.attention import attention
    from neojax.layout import named
    from neojax.layout.mesh import make_layout

    layout = make_layout(MeshConfig(f"row:{len(devices)}", "sequence:row"), devices)
    shape = 1, options["part"] * len(devices), options["heads"], options["head_dim"]
    with named.use_layout(layout):
        rows = jax.ShapeDtypeStruct(
            shape, jnp.dtype(dtype), sharding=named.sharding("batch sequence heads head_dim")
        )

    def gradients(q: Any, k: Any, v: Any, slope: Any) -> Any:
        with named.use_layout(layout):
            _, pull = jax.vjp(partial(attention, window=window), q, k, v)
            return pull(slope)

    with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
        return jax.jit(gradients).lower(rows, rows, rows, rows).compile()


def report(program: Any) -> dict[str, Any]:
    from neojax.plan.hlo import collectives

    sent: Counter[str] = Counter()
    for one in collectives(program.as_text()):
        sent[one.kind] += one.bytes * one.times
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    sizes = {"temporaries": memory.temp_size_in_bytes, "with_operands_and_results": held}
    return {**sizes, "bytes_of_collectives": dict(sent)}


def measured(options: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    import importlib.util

    import jax

    places = {"cpu": (jax.devices(), "float32")}
    if importlib.util.find_spec("libtpu") is not None:
        from neojax.layout.topology import tpu_devices

        places["v5e"] = tpu_devices("v5e:2x4"), "bfloat16"
    for place, (devices, dtype) in places.items():
        for kind, window in (("global", None), ("local", WINDOW)):
            alone, split = (
                report(compiled(devices[:count], dtype, window, options)) for count in (1, DEVICES)
            )
            yield f"{kind}, {place}", {"one": alone, "eight": split}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"part": 4096, "heads": 12, "head-dim": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    os.environ["JAX_PLATFORMS"] = "cpu"

    from neojax.layout.devices import fake_cpu_devices

    fake_cpu_devices(DEVICES)
    rows = {}
    for what, found in measured(options):
        rows[what] = found
        for size in ("temporaries", "with_operands_and_results"):
            one, eight = (found[n][size] for n in ("one", "eight"))
            found[f"{size}_ratio"] = ratio = eight / one if one else None
            sizes = f"{one / 1e6:.1f} MB on one, {eight / 1e6:.1f} MB on eight"
            print(f"{what}, {size}: {sizes}{f': {ratio:.2f}' if ratio else ''}", flush=True)
        print(f"  {found['eight']['bytes_of_collectives']}")
    save("long_rows", {**options, "devices": DEVICES, "window": WINDOW, "rows": rows})


if __name__ == "__main__":
    main()
