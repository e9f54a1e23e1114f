"""Perplexity of a trained model with its weights kept in float32, bfloat16 and int8, over the same held-out
text.

    make demo && python benchmarks/narrow_weights.py [--run demo/run] [--data demo/data/validation]

Every token but the first of a window of n_ctx is scored, in float32 arithmetic on one device. Bytes are those
of all parameters.
"""

import argparse
import math
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

import neojax
from neojax.data.batch import Batch
from neojax.data.store import TokenStore
from neojax.models.inference import WEIGHTS

BATCH = 16


@jax.jit
def score(state, inputs, targets):
    """Nats and scored tokens of a batch."""
    losses = nnx.merge(*state).loss(Batch(inputs, targets))
    return losses.nats, losses.scored


def perplexity(model, windows: np.ndarray) -> float:
    """exp of the mean loss over windows int32 [number, n_ctx + 1]."""
    nats = tokens = 0.0
    state = nnx.split(model)
    for first in range(0, len(windows), BATCH):
        batch = windows[first : first + BATCH]
        found = score(state, batch[:, :-1], batch[:, 1:])
        nats, tokens = nats + float(found[0]), tokens + float(found[1])
    return math.exp(nats / tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo/run", help="a run directory or Hugging Face directory")
    parser.add_argument("--data", default="demo/data/validation", help="a token store")
    options = parser.parse_args()
    store = TokenStore(options.data)
    results = {}
    for weights in WEIGHTS:
        model = neojax.load(options.run, dtype="float32", weights=weights)
        length = model.config.n_ctx
        count = (store.n_tokens - 1) // length // BATCH * BATCH
        windows = np.stack([store.read(i * length, (i + 1) * length + 1) for i in range(count)]).astype(
            np.int32
        )
        size = sum(a.nbytes for a in jax.tree.leaves(model.params()))
        results[weights] = {"perplexity": perplexity(model, windows), "bytes": size}
        change = results[weights]["perplexity"] / results["float32"]["perplexity"] - 1
        print(
            f"{weights:10} perplexity {results[weights]['perplexity']:.4f} ({change:+.3%}), "
            f"{size / 1e6:.2f} MB",
            flush=True,
        )
    save("narrow_weights", {"model": str(options.run), "tokens": windows[:, 1:].size, "weights": results})


if __name__ == "__main__":
    main()
