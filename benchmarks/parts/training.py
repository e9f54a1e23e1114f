"""Training: tokens/s and MFU of our step, and of PyTorch's GPT-Neo and a PyTorch model with fused
attention."""

from collections.abc import Iterator, Mapping
from typing import Any

import shapes
import training as contenders
from jobs import Job, Row

from parts import Chip, measured, needs, needs_torch, peak_memory, rates

SEQUENCE, STEPS = 2048, 4
BYTES_A_PARAMETER = 16  # weights, gradients and two moments in float32
LARGE = 100e9  # bytes of memory from which larger batches fit


def jobs(chip: Chip, tiny: bool) -> list[Job]:
    """Ours at several settings, beside the alternatives at the batch that fits them."""
    common = {
        "chip": chip["kind"],
        "platform": chip["platform"],
        "dtype": "bfloat16",
        "sequence": SEQUENCE,
        "steps": STEPS,
    }
    if tiny:
        common |= {"sequence": 32, "steps": 1, "backend": "eager", "model": "tiny", "batch": 2}
        return [
            Job("tiny, neojax", ours, {**common, "remat": "names", "unroll": 0}),
            Job("tiny, PyTorch, fused attention, torch.compile", fused, common),
            Job("tiny, transformers, eager", hugging_face, common),
        ]
    memory = chip["memory"] or 0
    room = 2 if memory > LARGE else 1
    large = {**common, "model": "1.3B"}
    small = {**common, "model": "125M"}
    eager = {**large, "batch": 2 * room}  # every score of every head is kept for the backward pass
    plans = [
        ("1.3B, neojax", ours, {**large, "batch": 8 * room}, 60, 150),
        ("1.3B, PyTorch, fused attention, torch.compile", fused, {**large, "batch": 8 * room}, 60, 140),
        ("125M, neojax", ours, {**small, "batch": 32 * room}, 30, 90),
        ("1.3B, transformers, torch.compile", hugging_face, {**eager, "compile": True}, 60, 140),
        *(
            (f"{model} ({family}), {who}", measure, {**family_options, **how}, 20, 60)
            for model, family, sequence, batch in (("160M", "gpt_neox", 2048, 32), ("base", "bert", 512, 128))
            for family_options in [
                {**common, "model": model, "family": family, "sequence": sequence, "batch": batch * room}
            ]
            for who, measure, how in (
                ("neojax", ours, {}),
                ("transformers, torch.compile", hugging_face, {"compile": True}),
            )
        ),
        ("1.3B, neojax, remat names", ours, {**large, "batch": 16 * room, "remat": "names"}, 50, 120),
        ("1.3B, transformers, eager", hugging_face, eager, 40, 80),
        ("125M, PyTorch, fused attention, torch.compile", fused, {**small, "batch": 32 * room}, 40, 90),
        ("125M, neojax, unroll 0", ours, {**small, "batch": 32 * room, "unroll": 0}, 40, 120),
    ]
    found = []
    for what, measure, options, least, most in plans:
        layers, embd, _ = shapes.SHAPES[options["model"]]
        state = (12 * layers * embd**2 + 50257 * embd) * BYTES_A_PARAMETER
        if not memory or state < memory:
            found.append(Job(what, measure, options, least, most))
        else:
            reason = f"its {state / 1e9:.0f} GB of state do not fit into {memory / 1e9:.0f} GB"
            found.append(Job(what, too_large, {"reason": reason}))
    return found


def too_large(options: Mapping[str, Any]) -> Iterator[Row]:
    """What a chip has no memory for."""
    yield {"skipped": options["reason"]}


def ours(options: Mapping[str, Any]) -> Iterator[Row]:
    """Our step."""
    yield {**settings(options), **with_mfu(rates(contenders.neojax_step, options), options), **peak_memory()}


def fused(options: Mapping[str, Any]) -> Iterator[Row]:
    """A PyTorch model of the same shapes with SDPA and FlexAttention under torch.compile."""
    needs_torch(options)
    yield {**settings(options), **with_mfu(rates(contenders.fused_step, options), options)}


def hugging_face(options: Mapping[str, Any]) -> Iterator[Row]:
    """`GPTNeoForCausalLM`, eager or under torch.compile."""
    needs_torch(options)
    needs("transformers")
    yield {**settings(options), **with_mfu(rates(contenders.hugging_face_step, options), options)}


def settings(options: Mapping[str, Any]) -> Row:
    """What a row says of how it was measured."""
    names = ("model", "family", "dtype", "sequence", "remat", "unroll")
    return {name: options[name] for name in names if name in options}


def with_mfu(row: Row, options: Mapping[str, Any]) -> Row:
    """The row with its share of the peak, where the chip's is known: the same FLOPs for every contender."""
    from neojax.layout.chips import PEAK_FLOPS
    from neojax.models.flops import flops_per_token

    flops = flops_per_token(
        shapes.ours(options["model"], options["sequence"], options.get("family", "gpt_neo"))
    )
    row["model_flops_per_second"] = row["tokens_per_second"] * flops
    if options["chip"] in PEAK_FLOPS:
        row["mfu"] = row["model_flops_per_second"] / PEAK_FLOPS[options["chip"]]
    return row


def conclude(rows: list[Row]) -> list[Row]:
    """Our best setting of a model against each alternative of the same model."""
    found = measured(rows, "tokens_per_second")
    comparisons = []
    for other in (row for row in found if "neojax" not in row["what"]):
        own = [row for row in found if "neojax" in row["what"] and row["model"] == other["model"]]
        if own:
            best = max(own, key=lambda row: row["tokens_per_second"])
            ratio = best["tokens_per_second"] / other["tokens_per_second"]
            comparisons.append({"what": f"{best['what']} against {other['what']}", "ratio": ratio})
    return comparisons
