"""Memory of the loss and its gradients, as the compiler plans it, in chunks and from whole logits.

    python benchmarks/loss_memory.py [--embd 768]

Nothing is run: the figures are the temporaries of the compiled program, for two vocabularies and two lengths.
What grows with vocabulary x sequence shows as the mixed difference, temporaries of (2V, 2T) - (2V, T) - (V,
2T) + (V, T).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

VOCABULARIES, TOKENS = (50304, 100608), (8192, 16384)


def temporaries(loss: Any, vocab: int, tokens: int, embd: int, dtype: str = "float32") -> int:
    """Bytes of temporaries of `loss` with its gradients for both operands, one row of `tokens`."""
    import jax
    import jax.numpy as jnp

    from neojax.layout import named
    from neojax.layout.mesh import single_device

    layout = single_device()

    def total(hidden: Any, table: Any, targets: Any) -> Any:
        with named.use_layout(layout):
            return loss(hidden, table, targets, vocab)[0]

    shapes = jax.ShapeDtypeStruct((1, tokens, embd), dtype), jax.ShapeDtypeStruct((vocab, embd), dtype)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    with jax.set_mesh(layout.mesh):
        program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*shapes, targets).compile()
    return program.memory_analysis().temp_size_in_bytes


def main() -> None:
    from neojax.kernels.chunked_loss import chunked_cross_entropy
    from neojax.kernels.loss import reference_cross_entropy

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embd", type=int, default=768)
    embd = parser.parse_args().embd
    kinds = {"in chunks": chunked_cross_entropy, "whole logits": reference_cross_entropy}
    rows = []
    mixed = dict.fromkeys(kinds, 0)
    print(f"temporaries of the loss and its gradients, MiB, float32, width {embd}")
    for i, vocab in enumerate(VOCABULARIES):
        for j, tokens in enumerate(TOKENS):
            found = {name: temporaries(loss, vocab, tokens, embd) for name, loss in kinds.items()}
            for name, size in found.items():
                mixed[name] += size if i == j else -size
            logits = 4 * vocab * tokens
            rows.append({"vocabulary": vocab, "tokens": tokens, "logits": logits, **found})
            sizes = ", ".join(f"{name} {size >> 20:,}" for name, size in found.items())
            print(f"  {vocab:>7,} x {tokens:>6,}: {sizes}; the logits {logits >> 20:,}", flush=True)
    base = 4 * VOCABULARIES[0] * TOKENS[0]
    share = {name: size / base for name, size in mixed.items()}
    for name, size in share.items():
        print(f"  {name}: {size:.2f} times the size of the logits grows with vocabulary x sequence")
    save("loss_memory", {"bytes": rows, "growth_with_vocabulary_x_sequence": share})


if __name__ == "__main__":
    main()
