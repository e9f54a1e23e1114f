"""A layer of experts beside the dense MLP of equal active FLOPs, forward and backward, on fake devices.

    python benchmarks/experts.py [--rounds 7] [--number 8] [--width 512]

The model is one block without attention over a small vocabulary, so that nearly all of its work is the layer.
Rows of the batch and experts are split over the same devices: tokens travel by all-to-all. Beside the rates:
what the compiled forward pass of a device sends to others by all-to-all, over the floor of two ways for each
token and each of its experts.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import measure, report, save

DENSE = "dense MLP, twice as wide"
CONTENDERS: dict[str, dict[str, Any]] = {
    DENSE: {"number": 0},
    "8 experts, capacity 1.25": {"capacity_factor": 1.25},
    "8 experts, capacity 1.0": {"capacity_factor": 1.0},
    "8 experts, dropless": {"dropless": True},
}


def step(experts: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Callable[..., Any], Any, Any]:
    """(the jitted loss with its gradient, parameters, tokens)."""
    import jax
    import numpy as np

    from neojax.config import from_dict
    from neojax.data.batch import Batch
    from neojax.layout.mesh import make_layout
    from neojax.models import Transformer

    number, top_k = experts.get("number", options["number"]), 2
    group = {"top_k": top_k, "width": options["width"], **experts, "number": number}
    sizes = {"n_layer": 1, "n_embd": options["embd"], "n_ctx": options["length"], "n_vocab": 64}
    mlp = {"width": options["width"] * top_k, "activation": "relu", "bias": False}
    config = from_dict(
        {
            "model": {
                **sizes,
                "attention": {"types": ["none"], "heads": 1},
                "mlp": mlp,
                **({"experts": group} if number else {}),
            },
            "mesh": {
                "cpu_devices": options["devices"],
                "shape": f"data:{options['devices']}",
                "layout": "batch:data, experts:data",
            },
        }
    )
    model = Transformer(config.model, make_layout(config.mesh)).init(0)
    tokens = np.random.default_rng(0).integers(0, 64, (options["batch"], options["length"] + 1)).astype("i4")

    def loss(params: Any, tokens: Any) -> Any:
        batch = Batch(tokens[:, :-1], tokens[:, 1:])
        return model.bind(params).loss(batch, dropout_key=jax.random.key(0)).total()

    with jax.set_mesh(model.layout.mesh):  # type: ignore[arg-type]
        placed = model.layout.put(tokens, "batch", "one")
    return jax.jit(jax.value_and_grad(loss)), model.params(), placed


def contender(experts: Mapping[str, Any], options: Mapping[str, Any]) -> Callable[[], int]:
    import jax

    grad, params, tokens = step(experts, options)

    def once() -> int:
        jax.block_until_ready(grad(params, tokens))
        return options["batch"] * options["length"]

    once()
    return once


def sent(options: Mapping[str, Any]) -> float:
    """Bytes that a device sends by all-to-all in the forward and backward pass, over twice the floor of one
    pass."""
    grad, params, tokens = step(CONTENDERS["8 experts, capacity 1.25"], options)
    program = grad.lower(params, tokens).compile().as_text()
    devices = options["devices"]
    elements = 0
    for line in program.splitlines():
        if " all-to-all(" in line:
            made = line.partition(" all-to-all(")[0].partition(" = ")[2]
            elements += sum(math.prod(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", made))
    floor = options["batch"] * options["length"] * options["embd"] * 2 * 2 / devices
    return elements * (devices - 1) / devices / (2 * floor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"devices": 8, "number": 8, "embd": 256, "width": 512, "batch": 8, "length": 512, "rounds": 7}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    layer = f"{options['number']} experts of width {options['width']}, 2 a token"
    title = f"{layer}, on {options['devices']} fake devices"
    contenders = {name: partial(contender, experts) for name, experts in CONTENDERS.items()}
    rates = measure(contenders, options, options["rounds"])
    results = report(title, rates, DENSE)
    results["sent_over_floor"] = sent(options)
    print(f"  sent by all-to-all, capacity 1.25: {results['sent_over_floor']:.3f} of the floor")
    save("experts", {**options, **results})


if __name__ == "__main__":
    main()
