"""Tokens/s of our training step and of Hugging Face's in PyTorch: same family, shapes, type and optimizer.

    python benchmarks/training.py [--family gpt_neo] [--model 125M] [--batch 2] [--sequence 512]
    [--dtype float32] [--rounds 5] [--compile]

Both do a whole AdamW step with clipping by the global norm on random tokens, of BERT (--family bert --model
base) with 15 % of them masked and a label for every pair, and without dropout. Ours runs as `neojax train`
does, with huge pages; PyTorch as it comes (with huge pages it was no faster: --huge-pages).
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shapes
from side_by_side import measure, report, save

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
LEARNING_RATE, WEIGHT_DECAY, CLIP = 6e-4, 0.1, 1.0
MASKED = 0.15  # of the tokens of an encoder


def neojax_program(options: Mapping[str, Any]) -> tuple[Any, Any, Callable[[], Any]]:
    """Our jitted step on one device, the state before it, and a function that brings the batch to the device.

    `options` may name `unroll`, `remat`, and keys of `train` that say how it is compiled.
    """
    import jax
    import numpy as np

    from neojax.config import TrainConfig
    from neojax.data.batch import NOT_SCORED, Batch
    from neojax.data.share import Share
    from neojax.layout.mesh import single_device
    from neojax.models import Transformer
    from neojax.models.compute import Compute, turns
    from neojax.training.optimizer import make_optimizer
    from neojax.training.state import init_state
    from neojax.training.step import make_train_step

    batch, sequence = options["batch"], options["sequence"]
    how = {name: options[name] for name in ("remat", "attention_kernel") if name in options}
    layout = single_device()
    model = Transformer(
        shapes.ours(options["model"], sequence, options.get("family", "gpt_neo")),
        layout,
        compute=Compute(dtype=options["dtype"], unroll=turns(options.get("unroll"), layout), **how),
    )
    train = TrainConfig(
        schedule="constant",
        warmup_steps=0,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP,
        deterministic=options.get("deterministic", False),
    )
    optimizer = make_optimizer(train, model.dims(), model.config.n_vocab)
    jax.set_mesh(model.layout.mesh)
    state = init_state(model.init(0), optimizer)
    step = make_train_step(model, optimizer, train)
    family, random = options.get("family", "gpt_neo"), np.random.default_rng(0)
    tokens = random.integers(0, shapes.VOCAB[family], (batch, sequence + 1), dtype=np.int32)
    rows = Batch(tokens[:, :-1], tokens[:, 1:])
    if family == "bert":
        chosen = random.random((batch, sequence)) < MASKED
        rows = Batch(rows.tokens, np.where(chosen, rows.tokens, NOT_SCORED), labels=np.zeros(batch, np.int32))
    share = Share(model.layout, batch)
    return step, state, lambda: share.place(rows)


def neojax_step(options: Mapping[str, Any]) -> Callable[[], int]:
    """Our step, as a contender."""
    import jax
    import jax.numpy as jnp

    step, state, batch = neojax_program(options)

    def once() -> int:
        nonlocal state
        for i in range(options["steps"]):
            state, metrics = step(state, batch(), jnp.int32(i))
        jax.block_until_ready(metrics)
        return options["steps"] * options["batch"] * options["sequence"]

    once()
    return once


def unrolled_step(options: Mapping[str, Any]) -> Callable[[], int]:
    """As `neojax_step` without a loop over layers: `train.unroll: 0`."""
    return neojax_step({**options, "unroll": 0})


def hugging_face_step(options: Mapping[str, Any]) -> Callable[[], int]:
    """The usual PyTorch loop around the model of transformers, eager or with torch.compile."""
    family = options.get("family", "gpt_neo")
    net = shapes.hugging_face(options["model"], options["sequence"], torch_device(), family)
    net.train()

    def loss_of(model: Any, tokens: Any) -> Any:
        if family != "bert":
            return model(tokens, labels=tokens).loss
        import torch

        targets = torch.where(torch.rand(tokens.shape, device=tokens.device) < MASKED, tokens, -100)
        return model(tokens, labels=targets, next_sentence_label=torch.zeros_like(tokens[:, 0])).loss

    return pytorch_loop(net, loss_of, options)


def fused_step(options: Mapping[str, Any]) -> Callable[[], int]:
    """The same loop around a PyTorch model of the same shapes with fused attention, under torch.compile."""
    import torch
    from torch_model import Model

    with torch.device(torch_device()):
        net = Model(*shapes.SHAPES[options["model"]], options["sequence"])
    net.prepare(options["sequence"], torch_device())
    return pytorch_loop(net, lambda model, tokens: model(tokens), {**options, "compile": True})


def torch_device() -> str:
    """Where PyTorch's contenders run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pytorch_loop(net: Any, loss_of: Callable[..., Any], options: Mapping[str, Any]) -> Callable[[], int]:
    """AdamW with clipping by the global norm; bfloat16 by autocast over float32 weights."""
    import torch

    batch, sequence = options["batch"], options["sequence"]
    device = torch_device()
    net = net.to(device)
    model = net
    if options.get("compile"):
        # else another batch size than one compiled before would be compiled for any size
        torch.compiler.reset()
        model = torch.compile(net, backend=options.get("backend", "inductor"))
    adam = torch.optim.AdamW(
        net.parameters(),
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.95),
        fused=device == "cuda",  # its fastest there
    )
    n_vocab = shapes.VOCAB[options.get("family", "gpt_neo")]
    tokens = torch.randint(0, n_vocab, (batch, sequence), device=device)
    half = options["dtype"] == "bfloat16"

    def once() -> int:
        for _ in range(options["steps"]):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss = loss_of(model, tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            adam.step()
            adam.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        return options["steps"] * batch * sequence

    once()
    return once


def hugging_face_compiled(options: Mapping[str, Any]) -> Callable[[], int]:
    """As `hugging_face_step` under torch.compile."""
    return hugging_face_step({**options, "compile": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="gpt_neo", choices=shapes.VOCAB)
    parser.add_argument("--model", default="125M", choices=shapes.SHAPES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=2, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--huge-pages", action="store_true", help="measure PyTorch with huge pages too")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument(
        "--fused", action="store_true", help="measure a PyTorch model with SDPA and FlexAttention too"
    )
    parser.add_argument("--save", default="training", metavar="NAME", help="write results/NAME.json")
    options = vars(parser.parse_args())
    if options["fused"] and options["family"] != "gpt_neo":
        parser.error("the PyTorch model of --fused is of the family gpt_neo")
    contenders = {
        "neojax": neojax_step,
        "neojax, train.unroll=0": unrolled_step,
        "transformers, eager": hugging_face_step,
    }
    if options["huge_pages"]:
        contenders["transformers, eager, huge pages"] = hugging_face_step
    if options["compile"]:
        contenders["transformers, torch.compile"] = hugging_face_compiled
    if options["fused"]:
        contenders["PyTorch, fused attention, torch.compile"] = fused_step
    environments = {name: HUGE_PAGES for name in contenders if "neojax" in name or "huge pages" in name}
    title = "training, {family} {model}, {dtype}, batch {batch} x {sequence}".format(**options)
    rates = measure(contenders, options, options["rounds"], environments)
    save(options["save"], [report(title, rates, "transformers, eager")])


if __name__ == "__main__":
    main()
