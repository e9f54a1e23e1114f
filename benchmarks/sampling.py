"""Tokens/s of our decoding and of Hugging Face's `generate` with its cache: same shapes and type, greedy, no
stop.

    python benchmarks/sampling.py [--model 125M] [--batch 1 8] [--prompt 64] [--new 64] [--rounds 5]
        [--dtype float32] [--weights float32 bfloat16 int8]

Random weights and prompts. Tokens are the new ones; the time includes reading the prompt. For every batch
also the share of the memory bandwidth that reading the weights once a token comes to: of the data sheet's on
a GPU that BANDWIDTH lists, else of that of summing a large array on the same cores, which takes its turn in
the same rounds.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shapes
from side_by_side import measure, report, save

READ = 1 << 30  # bytes of the array whose reading is timed
BANDWIDTH = {  # bytes/s by JAX's name of the device, from the makers' data sheets
    "TPU v4": 1.228e12,
    "TPU v5 lite": 0.819e12,  # v5e
    "TPU v5e": 0.819e12,
    "TPU v5": 2.765e12,  # v5p
    "TPU v5p": 2.765e12,
    "TPU v6 lite": 1.638e12,  # v6e
    "TPU v6e": 1.638e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H200": 4.8e12,
    "NVIDIA B200": 8e12,
    "NVIDIA L4": 0.3e12,
}


def prompts(options: Mapping[str, Any]) -> Any:
    """Random token ids int64 [batch, prompt]."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 50257, (options["batch"], options["prompt"]))


def neojax_generate(weights: str, options: Mapping[str, Any]) -> Callable[[], int]:
    """`neojax.generate` on one device, with its matrices kept as `weights`."""
    import neojax
    from neojax.models import Transformer
    from neojax.models.compute import Compute
    from neojax.models.inference import for_inference

    model = Transformer(shapes.ours(options["model"]), compute=Compute(dtype=options["dtype"])).init(0)
    model = for_inference(model, weights)
    tokens = prompts(options).tolist()

    def once() -> int:
        rows = neojax.generate(model, tokens, max_new_tokens=options["new"], temperature=0, eos=())
        assert all(len(row) == options["new"] for row in rows)
        return options["new"] * options["batch"]

    once()
    return once


def hugging_face_generate(options: Mapping[str, Any]) -> Callable[[], int]:
    """`GPTNeoForCausalLM.generate`, eager, with the key-value cache it has by default."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = shapes.hugging_face(options["model"], device=device)
    model = model.to(device, getattr(torch, options["dtype"])).eval()
    tokens = torch.tensor(prompts(options), device=device)
    new = options["new"]
    model.generation_config.eos_token_id = None

    def once() -> int:
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, min_new_tokens=None,
            max_new_tokens=new, use_cache=True, pad_token_id=0,
        )  # fmt: skip
        assert out.shape[1] == tokens.shape[1] + new
        return new * options["batch"]

    once()
    return once


def memory(options: Mapping[str, Any]) -> Callable[[], int]:
    """Reads a large array on all cores; its "tokens" are bytes."""
    import torch

    array = torch.ones(READ // 4)

    def once() -> int:
        for _ in range(4):
            array.sum()
        return 4 * READ

    once()
    return once


def weight_bytes(options: Mapping[str, Any], weights: str) -> int:
    """Bytes of the parameters that decoding a token reads: all but the position table."""
    import jax

    from neojax.models import Transformer
    from neojax.models.inference import for_inference

    model = Transformer(shapes.ours(options["model"]))
    params = jax.eval_shape(
        lambda params: for_inference(model.bind(params), weights).params(), model.params()
    )
    most = {"float32": 4, "bfloat16": 2}[options["dtype"]]
    leaves = jax.tree.leaves({name: value for name, value in params.items() if name != "wpe"})
    return sum(leaf.size * min(most, leaf.dtype.itemsize) for leaf in leaves)


def datasheet_bandwidth() -> float | None:
    """Bytes/s of the GPU here; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    if name not in BANDWIDTH:
        raise SystemExit(f"error: BANDWIDTH does not list {name}; add it from its data sheet")
    return BANDWIDTH[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="125M", choices=shapes.SHAPES)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--weights", nargs="+", default=["float32"], choices=("float32", "bfloat16", "int8"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", default="sampling", metavar="NAME", help="write results/NAME.json")
    options = vars(parser.parse_args())
    ours = {f"neojax, {weights} weights": weights for weights in options["weights"]}
    contenders = {name: partial(neojax_generate, weights) for name, weights in ours.items()}
    contenders["transformers, eager"] = hugging_face_generate
    datasheet = datasheet_bandwidth()
    if datasheet is None:
        contenders["memory"] = memory
    reports = []
    for batch in options["batch"]:
        rates = measure(contenders, {**options, "batch": batch}, options["rounds"])
        bandwidth = datasheet or statistics.median(rates.pop("memory"))
        title = "decoding, {model}, {dtype}, batch {0}, {prompt} + {new} tokens".format(batch, **options)
        result = report(title, rates, "transformers, eager")
        shares = {}
        for name, weights in ours.items():
            steps = statistics.median(rates[name]) / batch
            shares[name] = steps * weight_bytes(options, weights) / bandwidth
            print(f"  {name}: read at {shares[name]:.0%} of the memory bandwidth, {bandwidth / 1e9:.1f} GB/s")
        reports.append({**result, "memory_bytes_per_second": bandwidth, "share_of_bandwidth": shares})
    save(options["save"], reports)


if __name__ == "__main__":
    main()
