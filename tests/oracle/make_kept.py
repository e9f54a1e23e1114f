"""Writes `original.npz`: what the original computes for the models of `cases.py`. Run by hand, with the extra
`oracle`:

python tests/oracle/make_kept.py
"""

import cases
import numpy as np
from original import Original


def values(config: dict) -> dict[str, np.ndarray]:
    """Logits, loss and gradients at one batch."""
    (tokens,) = cases.batches(config, 1)
    model = Original(config, config["batch"], cases.weights(config))
    loss, gradients = model.loss_and_gradients(tokens[:, :-1], tokens[:, 1:])
    found = {f"gradient/{name}": g for name, g in gradients.items()}
    return {"logits": model.logits(tokens[:, :-1]), "loss": loss, **found}


def resumed(config: dict) -> dict[str, np.ndarray]:
    """The losses before each of the steps and after the last."""
    *tokens, last = cases.batches(config, cases.STEPS + 1)
    weights = cases.weights(config)
    model = Original(config, config["batch"], weights | cases.slots(config, weights), cases.START)
    losses = [model.train(t[:, :-1], t[:, 1:]) for t in (*tokens, last)]
    return {"losses": np.float32(losses)}


def rounded(config: dict) -> dict[str, np.ndarray]:
    """Logits in bfloat16 and in float32."""
    (tokens,) = cases.batches(config, 1)
    found = {}
    for precision in ("bfloat16", "float32"):
        model = Original({**config, "precision": precision}, config["batch"], cases.rounded_weights(config))
        found[precision] = model.logits(tokens[:, :-1])
    return found


def everything() -> dict[str, np.ndarray]:
    found = {}
    for name in cases.VALUES:
        found |= {f"{name}/{key}": v for key, v in values(cases.config_of(name, cases.VALUES)).items()}
    for name in cases.BIDIRECTIONAL:
        found[f"{name}/logits"] = values(cases.config_of(name, cases.BIDIRECTIONAL))["logits"]
    for name in cases.ROUNDED:
        found |= {f"{name}/{key}": v for key, v in rounded(cases.config_of(name, cases.ROUNDED)).items()}
    for name in cases.RESUMED:
        found |= {f"{name}/{key}": v for key, v in resumed(cases.config_of(name, cases.RESUMED)).items()}
    return found


if __name__ == "__main__":
    np.savez_compressed(cases.KEPT, **everything())
