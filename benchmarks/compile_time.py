"""Compile time of the training step with 12 and with 24 layers: scanned layer groups make it independent of
depth.

    python benchmarks/compile_time.py [--rounds 3]

The width is the 125M model's; nothing is run and no compilation cache is used.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import shapes
from side_by_side import save


def compile_seconds(layers: int, sequence: int = 512, batch: int = 2) -> float:
    """Seconds to trace, lower and compile the step of a model of that many layers."""
    import jax
    import jax.numpy as jnp

    from neojax.config import TrainConfig
    from neojax.data.batch import Batch
    from neojax.layout.mesh import single_device
    from neojax.models import Transformer
    from neojax.training.optimizer import make_optimizer
    from neojax.training.state import abstract_state
    from neojax.training.step import make_train_step

    jax.clear_caches()
    config = dataclasses.replace(shapes.ours("125M", sequence), n_layer=layers)
    model = Transformer(config, single_device())
    train = TrainConfig(schedule="constant", warmup_steps=0)
    optimizer = make_optimizer(train, model.dims(), model.config.n_vocab)
    with jax.set_mesh(model.layout.mesh):
        state = abstract_state(model, optimizer)
        tokens = jax.ShapeDtypeStruct((1, batch, sequence), jnp.int32)
        start = time.perf_counter()
        step = make_train_step(model, optimizer, train)
        step.lower(state, Batch(tokens, tokens), jnp.int32(0)).compile()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    seconds: dict[int, list[float]] = {12: [], 24: []}
    compile_seconds(2)  # what is paid once a process
    for _ in range(rounds):
        for layers, values in seconds.items():
            values.append(compile_seconds(layers))
    medians = {layers: statistics.median(values) for layers, values in seconds.items()}
    for layers, median in medians.items():
        print(f"{layers} layers: {median:.1f} s")
    print(f"ratio {medians[24] / medians[12]:.2f}")
    save("compile_time", {"seconds": seconds, "ratio": medians[24] / medians[12]})


if __name__ == "__main__":
    main()
