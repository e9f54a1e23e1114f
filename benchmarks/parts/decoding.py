"""Decoding: tokens/s of `neojax.generate` and of transformers' `generate`, and the share of the memory's
bandwidth."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import sampling as contenders
from jobs import Job, Row

from parts import Chip, measured, needs, needs_torch, peak_memory, rates

PROMPT, NEW = 64, 128


def jobs(chip: Chip, tiny: bool) -> list[Job]:
    """Ours and the alternative at batch 1 and 8; narrow weights; a large batch."""
    common = {
        "chip": chip["kind"],
        "platform": chip["platform"],
        "dtype": "bfloat16",
        "prompt": PROMPT,
        "new": NEW,
        "weights": "float32",
    }
    if tiny:
        common |= {"model": "tiny", "prompt": 4, "new": 4, "batch": 1}
        return [
            Job("tiny, neojax, batch 1", ours, {**common, "weights": "int8"}),
            Job("tiny, transformers, batch 1", hugging_face, common),
        ]
    found = []
    for model, batch, weights in (("1.3B", 1, "float32"), ("1.3B", 8, "float32"), ("1.3B", 1, "int8")):
        narrow = f", {weights} weights" if weights != "float32" else ""
        options = {**common, "model": model, "batch": batch, "weights": weights}
        found.append(Job(f"{model}, neojax{narrow}, batch {batch}", ours, options, 45, 120))
        if not narrow:
            found.append(Job(f"{model}, transformers, batch {batch}", hugging_face, options, 40, 100))
    for model, batch in (("125M", 1), ("1.3B", 64)):
        options = {**common, "model": model, "batch": batch}
        found.append(Job(f"{model}, neojax, batch {batch}", ours, options, 45, 120))
    return found


def ours(options: Mapping[str, Any]) -> Iterator[Row]:
    """`neojax.generate`, and how fast it reads its weights."""
    row = rates(partial(contenders.neojax_generate, options["weights"]), options)
    listed = contenders.BANDWIDTH.get(options["chip"])
    bandwidth = listed or read_bandwidth(1 << 22 if options["model"] == "tiny" else contenders.READ)
    tokens = row["tokens_per_second"] / row["batch"]
    row["share_of_bandwidth"] = tokens * contenders.weight_bytes(options, options["weights"]) / bandwidth
    source = "the data sheet" if listed else "a large array read by JAX"
    yield {**settings(options), **row, "bandwidth": bandwidth, "bandwidth_from": source, **peak_memory()}


def hugging_face(options: Mapping[str, Any]) -> Iterator[Row]:
    """`GPTNeoForCausalLM.generate` with its cache."""
    needs_torch(options)
    needs("transformers")
    yield {**settings(options), **rates(contenders.hugging_face_generate, options)}


def settings(options: Mapping[str, Any]) -> Row:
    """What a row says of how it was measured."""
    return {name: options[name] for name in ("model", "dtype", "prompt", "new", "weights")}


def read_bandwidth(size: int) -> float:
    """Bytes/s of summing an array of `size` bytes."""
    import jax
    import jax.numpy as jnp

    array = jax.jit(lambda: jnp.ones(size // 4))()
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(array))
    start = time.perf_counter()
    jax.block_until_ready([total(array) for _ in range(4)])
    return 4 * size / (time.perf_counter() - start)


def conclude(rows: list[Row]) -> list[Row]:
    """Ours against the alternative, batch by batch."""
    found = {row["what"]: row["tokens_per_second"] for row in measured(rows, "tokens_per_second")}
    return [
        {"what": f"{what} against {other}", "ratio": rate / found[other]}
        for what, rate in found.items()
        if "neojax," in what and (other := what.replace("neojax", "transformers")) in found
    ]
