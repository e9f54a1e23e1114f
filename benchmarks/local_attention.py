"""A local layer of attention against the same layer with the whole matrix of scores: seconds and memory.

    python benchmarks/local_attention.py [--sequence 8192] [--window 256] [--heads 4] [--rounds 5]

Both are the attention of one layer, forward and backward, on the same random queries, keys and values; the
results are compared first. Heads are as wide as the 125M model's but fewer, since a whole matrix of scores
for each of 12 takes more memory than small machines have. Memory is the temporaries of the compiled programs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

HEAD_DIM = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequence", type=int, default=8192)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    import jax
    import jax.numpy as jnp
    import numpy as np

    from neojax.kernels.attention import attention, reference
    from neojax.layout import named
    from neojax.layout.mesh import single_device

    layout = single_device()
    shape = (1, options.sequence, options.heads, HEAD_DIM)
    q, k, v, g = (jax.random.normal(key, shape) / 8 for key in jax.random.split(jax.random.key(0), 4))

    def program(kernel):
        def total(q, k, v, g):
            with named.use_layout(layout):
                return jnp.sum(kernel(q, k, v, window=options.window) * g)

        return jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(q, k, v, g).compile()

    with jax.set_mesh(layout.mesh):
        programs = {"local": program(attention), "full mask": program(reference)}
        values = {name: jax.block_until_ready(run(q, k, v, g)) for name, run in programs.items()}
        for a, b in zip(*(jax.tree.leaves(value) for value in values.values())):
            np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(b).max()))
        del values
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(options.rounds):
            for name in list(programs)[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                jax.block_until_ready(programs[name](q, k, v, g))
                seconds[name].append(time.perf_counter() - start)
    temporaries = {name: run.memory_analysis().temp_size_in_bytes for name, run in programs.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = {
        "time": medians["full mask"] / medians["local"],
        "memory": temporaries["full mask"] / temporaries["local"],
    }
    print(f"attention over {options.sequence} tokens, window {options.window}, forward and backward, float32")
    for name in programs:
        print(f"  {name:10} {medians[name]:8.3f} s   {temporaries[name] / 2**20:10,.0f} MiB of temporaries")
    print(f"  the full mask takes {ratio['time']:.1f} times the time and {ratio['memory']:.1f} the memory")
    save("local_attention", {**vars(options), "seconds": seconds, "temporaries": temporaries, "ratio": ratio})


if __name__ == "__main__":
    main()
