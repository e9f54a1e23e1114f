"""What `train.reduce_dtype` costs in precision: errors of gradients that are added up over parts of a batch.

    python benchmarks/reduce_dtype.py [--parts 8 64 512] [--embd 128]

Every part's gradient is what a device computes for its own rows in bfloat16. The parts are added up as a ring
does it, which rounds the sum to the type that travels at every hop; fake devices cannot show this, since
XLA's CPU backend adds up bfloat16 in float32. An error is the norm of the difference to the same parts added
up in float64, relative to its norm. `compute` is that of bfloat16 compute itself, added up without loss,
against float32 compute.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

FREQUENT, RARE = 3, 999
TYPES = ("float32", "bfloat16")
Parts = dict[str, Any]


def batch_of(rows: int, length: int) -> Any:
    """Tokens int32 [rows, length + 1] over 1,000 ids: every fourth is FREQUENT, RARE stands once in the
    whole."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(4, RARE, (rows, length + 1)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.25] = FREQUENT
    tokens[rows // 2, length // 2] = RARE
    return tokens


def gradients(dtype: str, reduce_dtype: str, tokens: Any, parts: int, embd: int) -> Parts:
    """The gradient of the summed loss of each part, numpy [parts, ...], of two rows of the table and two
    matrices."""
    import jax
    import numpy as np

    from neojax.config import AttentionConfig, ModelConfig
    from neojax.data.batch import Batch
    from neojax.models import Transformer
    from neojax.models.compute import Compute

    config = ModelConfig(
        n_layer=2, n_embd=embd, n_ctx=tokens.shape[1] - 1, n_vocab=1000, attention=AttentionConfig(heads=4)
    )
    model = Transformer(config, compute=Compute(dtype=dtype, reduce_dtype=reduce_dtype)).init(0)

    def own(rows: Any) -> Parts:
        def loss(params: Parts) -> Any:
            return model.bind(params).loss(Batch(rows[:, :-1], rows[:, 1:])).nats

        grads = jax.grad(loss)(model.params())
        return {
            "a frequent row of the table": grads["wte"][FREQUENT],
            "a rare row of the table": grads["wte"][RARE],
            "query of the first layer": grads["blocks.0.attn.query"],
            "down of the last layer": grads["blocks.1.mlp.down"],
        }

    with jax.set_mesh(model.layout.mesh):
        found = jax.jit(lambda rows: jax.lax.map(own, rows))(tokens.reshape(parts, -1, tokens.shape[1]))
    return jax.tree.map(np.asarray, found)


def ring(parts: Any, dtype: Any) -> Any:
    """The sum over the first dimension in which every hop rounds to `dtype`."""
    total = parts[0].astype(dtype)
    for part in parts[1:]:
        total = (total.astype("float32") + part.astype(dtype).astype("float32")).astype(dtype)
    return total.astype("float64")


def error(found: Any, true: Any) -> float:
    import numpy as np

    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def main() -> None:
    import ml_dtypes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--embd", type=int, default=128)
    options = parser.parse_args()
    tokens = batch_of(options.rows, options.length)
    kinds = {"float32": "float32", "bfloat16": ml_dtypes.bfloat16}
    results = []
    for parts in options.parts:
        exact = gradients("float32", "float32", tokens, parts, options.embd)
        kept = gradients("bfloat16", "float32", tokens, parts, options.embd)
        for name, own in kept.items():
            true = own.astype("float64").sum(0)
            row = {"parts": parts, "what": name}
            row |= {kind: error(ring(own, kinds[kind]), true) for kind in TYPES}
            row["compute"] = error(true, exact[name].astype("float64").sum(0))
            results.append(row)
            figures = ", ".join(f"{kind} {row[kind]:.2%}" for kind in (*TYPES, "compute"))
            print(f"{parts:4} parts, {name}: {figures}", flush=True)
    save("reduce_dtype", {**vars(options), "errors": results})


if __name__ == "__main__":
    main()
