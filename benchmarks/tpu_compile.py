"""Compiles the training step for TPUs that are not here and shows what the program holds: memory, kernels,
collectives.

    python benchmarks/tpu_compile.py [--topology v5e:16x16] [--model 1.3B] [--batch 512] [--remat names]
        [--reduce-dtype float32] [--shape data:-1] [--dcn-shape slices:2] [--layout batch:data]
        [--param-layout embd:data] [--effort -1] [--save tpu_compile]

The layout is FSDP over all chips unless told otherwise, the compute type bfloat16, the inputs abstract. Needs
libtpu (`pip install .[tpu]`).
"""

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shapes
from side_by_side import save

from neojax.plan.hlo import Array, collectives, size

SPLASH = re.compile(r"splash_mha_(fwd|dq|dkv)")


def compiled(options: Mapping[str, Any]) -> tuple[Any, Any, dict[str, float]]:
    """The model, the compiled step, and the seconds that each stage took."""
    import jax
    import jax.numpy as jnp

    from neojax.config import MeshConfig, TrainConfig
    from neojax.data.batch import Batch
    from neojax.data.share import BATCH_DIMS
    from neojax.layout.mesh import make_layout
    from neojax.layout.topology import tpu_devices
    from neojax.models import Transformer
    from neojax.models.compute import Compute
    from neojax.training.optimizer import make_optimizer
    from neojax.training.state import abstract_state
    from neojax.training.step import make_train_step

    jax.config.update("jax_exec_time_optimization_effort", options["effort"])
    mesh = MeshConfig(
        options["shape"], options["layout"], options["param_layout"], dcn_shape=options["dcn_shape"]
    )
    layout = make_layout(mesh, tpu_devices(options["topology"]))
    model = Transformer(
        shapes.ours(options["model"], options["sequence"]),
        layout,
        Compute(
            dtype=jnp.bfloat16,
            reduce_dtype=options["reduce_dtype"],
            remat=options["remat"],
            attention_kernel=options["kernel"],
            joined=options["joined"],
        ),
    )
    train = TrainConfig(batch_size=options["batch"], compiler_options=tuple(options["compiler_options"]))
    optimizer = make_optimizer(train, model.dims(), model.config.n_vocab)
    shape = (1, options["batch"], options["sequence"])
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.sharding(BATCH_DIMS, shape))
    with jax.set_mesh(layout.mesh):
        state = abstract_state(model, optimizer)
        step = make_train_step(model, optimizer, train)
        start = time.perf_counter()
        batch = Batch(tokens, tokens)
        lowered = step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.int32))
        between = time.perf_counter()
        program = lowered.compile()
    return model, program, {"lower": between - start, "compile": time.perf_counter() - between}


def found(hlo: str) -> dict[str, list[Array]]:
    """The arrays of every collective of the program by kind, each collective once, however often it runs."""
    by_kind: dict[str, list[Array]] = {}
    for one in collectives(hlo):
        by_kind.setdefault(one.kind, []).extend(one.arrays)
    return by_kind


def bytes_by_type(results: list[Array]) -> Counter[str]:
    """Bytes of the arrays of each type."""
    count: Counter[str] = Counter()
    for array in results:
        count[array[0]] += size(array)
    return count


def report(model: Any, program: Any) -> dict[str, Any]:
    """Bytes per chip, kernels, and collectives of a compiled step, and whether any gathers more than
    parameters."""
    hlo = program.as_text()
    memory = program.memory_analysis()
    by_kind = found(hlo)
    config = model.config
    ours = {v.shape["layers" in dims :] for v, dims in zip(model.stored().values(), model.dims().values())}
    gathered = {tuple(n for n in shape if n > 1) for _, shape in by_kind.get("all-gather", ())}
    others = {shape for shape in gathered if not any(part_of(shape, p) for p in ours)}
    vocab = model.layout.padded_vocab(config.n_vocab)
    calls = [line for line in hlo.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    kernels = [match[1] for line in calls if (match := SPLASH.search(line))]
    return {
        "bytes_per_chip": {
            "arguments": memory.argument_size_in_bytes,
            "outputs_in_place_of_arguments": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        },
        "splash_kernels": {name: kernels.count(name) for name in ("fwd", "dq", "dkv")},
        "collectives": {
            name: {
                "count": len(results),
                "bytes_by_type": dict(bytes_by_type(results)),
                "bytes": sum(map(size, results)),
                "largest": "{} {}".format(*max(results, key=size)),
            }
            for name, results in by_kind.items()
            if results
        },
        "all_gathers_of_other_than_parameters": sorted(map(list, others)),
        "gathers_logits": any(vocab in s for s in others),
        "gathers_scores": any(s.count(config.n_ctx) > 1 for s in others),
    }


def part_of(shape: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether a shape is that of a parameter inside its layer, or of an even part of it."""
    return len(shape) == len(parameter) and all(whole % part == 0 for part, whole in zip(shape, parameter))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--model", default="1.3B", choices=shapes.SHAPES)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--remat", default="names", choices=("none", "names", "full"))
    parser.add_argument("--reduce-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--kernel", default="auto", choices=("auto", "xla", "splash"))
    parser.add_argument("--shape", default="data:-1")
    parser.add_argument("--layout", default="batch:data")
    parser.add_argument("--param-layout", default="embd:data")
    parser.add_argument("--dcn-shape", default="")
    parser.add_argument("--joined", action="store_true", help="queries, keys and values from one matrix")
    parser.add_argument(
        "--effort", type=float, default=0.0, help="-1: compiled in a fraction of the time, less well"
    )
    parser.add_argument("--compiler-options", nargs="*", default=(), metavar="NAME=VALUE")
    parser.add_argument("--save", default="tpu_compile", help="the name of the file in results/")
    options = vars(parser.parse_args())
    os.environ["JAX_PLATFORMS"] = "cpu"
    model, program, seconds = compiled(options)
    result = {**options, "seconds": seconds, **report(model, program)}
    for name, value in result.items():
        print(f"{name}: {value}")
    save(options["save"], result)


if __name__ == "__main__":
    main()
