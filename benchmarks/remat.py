"""Memory against speed of the training step: what the backward pass recomputes, and the type of the first
moment.

    python benchmarks/remat.py [--model 125M] [--batch 2] [--sequence 512] [--rounds 5]

One program for each policy and type, all in one process, taking turns over the same state. Memory is what the
compiler plans: arguments (the state), which the results take the place of, and temporaries.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shapes
from side_by_side import save

SETTINGS = {
    "none": {},
    "names": {"remat": "names"},
    "full": {"remat": "full"},
    "offload": {"remat": "offload"},
    "none, bfloat16 first moment": {"moment_dtype": "bfloat16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="125M", choices=shapes.SHAPES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    options = vars(parser.parse_args())

    import jax
    import jax.numpy as jnp
    import numpy as np

    from neojax.config import TrainConfig
    from neojax.data.batch import Batch
    from neojax.data.share import Share
    from neojax.layout.mesh import single_device
    from neojax.models import Transformer
    from neojax.models.compute import Compute
    from neojax.training.optimizer import make_optimizer
    from neojax.training.state import State
    from neojax.training.step import make_train_step

    layout = single_device()
    jax.set_mesh(layout.mesh)
    tokens = np.random.default_rng(0).integers(
        0, 50257, (options["batch"], options["sequence"] + 1), dtype=np.int32
    )
    batch = Share(layout, options["batch"]).place(Batch(tokens[:, :-1], tokens[:, 1:]))
    programs: dict[str, Any] = {}
    optimizers: dict[str, Any] = {}
    memory: dict[str, dict[str, int]] = {}
    config = shapes.ours(options["model"], options["sequence"])
    params = Transformer(config, layout).init(0).params()
    for name, changes in SETTINGS.items():
        train = TrainConfig(schedule="constant", warmup_steps=0, **changes)
        model = Transformer(config, layout, Compute(dtype=options["dtype"], remat=train.remat))
        optimizers[name] = optimizer = make_optimizer(train, model.dims(), model.config.n_vocab)
        state = State(params, {}, jax.jit(optimizer.init)(params))
        step = make_train_step(model, optimizer, train)
        programs[name] = step.lower(state, batch, jnp.int32(0)).compile()
        found = programs[name].memory_analysis()
        memory[name] = {
            "arguments": found.argument_size_in_bytes,
            "temporaries": found.temp_size_in_bytes,
            "host": found.host_temp_size_in_bytes,
            "aliased": found.alias_size_in_bytes,
        }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(-1, options["rounds"]):  # the first is to warm up
        names = list(programs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            state = State(params, {}, jax.jit(optimizers[name].init)(params))
            jax.block_until_ready(state)
            start = time.perf_counter()
            state, metrics = programs[name](state, batch, jnp.int32(0))
            jax.block_until_ready((state, metrics))
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
            params = state.trained
            del state
    print("training step, {model}, {dtype}, batch {batch} x {sequence}".format(**options))
    rows = {}
    base = statistics.median(seconds["none"])
    for name, found in memory.items():
        median = statistics.median(seconds[name])
        rows[name] = {**found, "seconds": median, "ratio": median / base, "rounds": seconds[name]}
        sizes = (
            f"{found['arguments'] >> 20:7,} MiB of state and batch {found['temporaries'] >> 20:7,} MiB of "
            f"temporaries"
        )
        print(f"  {name:28} {sizes} {median:7.2f} s {median / base:5.2f}x the time of none")
    save("remat", {**options, "settings": rows})


if __name__ == "__main__":
    main()
