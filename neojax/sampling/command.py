"""`neojax sample RUN [--prompt TEXT]`: text from a trained model."""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from neojax import config
from neojax.errors import NeojaxError


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax sample`."""
    parser.add_argument(
        "model",
        metavar="RUN_OR_CHECKPOINT",
        help="a run directory, RUN/checkpoints/STEP, or a Hugging Face directory",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="mesh.key=value",
        help="the mesh to sample on, as in mesh.shape=model:4 mesh.layout=heads:model,mlp:model,vocab:model",
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeat it for several")
    parser.add_argument(
        "--prompt-file",
        action="append",
        default=[],
        metavar="F",
        help='a file that is one prompt, or a .jsonl with a "prompt" (or "text") a line; - is standard input',
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of mass P"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: fewer repeated tokens"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same text")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="samples of each prompt")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a sample, and nothing else")
    parser.add_argument("--no-stream", action="store_true", help="print the text when it is complete")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="compute type"
    )


def run(args: Namespace) -> None:
    """Prints the samples. Raises `NeojaxError` for what the user can mend."""
    prompts = [*args.prompt, *(text for name in args.prompt_file for text in read_prompts(name))] or [""]
    for text in args.overrides:
        if not text.startswith("mesh."):
            raise NeojaxError(f"{text!r}: only mesh.key=value can be set here; the rest comes with the model")
    mesh = config.from_dict({}, args.overrides).mesh if args.overrides else None
    from neojax.loading import load
    from neojax.sampling.generate import generate

    model = load(args.model, mesh=mesh, dtype=args.dtype)
    streams = not args.json and not args.no_stream and len(prompts) * args.num_samples == 1
    if streams:
        print(prompts[0], end="", flush=True)
    samples = generate(
        model,
        prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        num_samples=args.num_samples,
        stop=args.stop,
        stream=(lambda row, piece: print(piece, end="", flush=True)) if streams else None,
        return_samples=True,
    )
    if streams:
        print()
        return
    for i, sample in enumerate(samples):
        if args.json:
            print(json.dumps(vars(sample), ensure_ascii=False), flush=True)
            continue
        if len(samples) > 1:
            print(
                f"{'' if i == 0 else chr(10)}--- prompt {i // args.num_samples + 1}, sample {i % args.num_samples + 1}"
            )
        print(f"{sample.prompt}{sample.text}", flush=True)


def read_prompts(name: str) -> list[str]:
    """The prompts of a file. Raises `NeojaxError`."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise NeojaxError(
            f"--prompt-file {name}: cannot read it as text: {getattr(e, 'strerror', None) or e}"
        ) from None
    if not name.endswith(".jsonl"):
        return [text]
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value: Any = json.loads(line)
        except json.JSONDecodeError:
            value = None
        found = value.get("prompt", value.get("text")) if isinstance(value, dict) else value
        if not isinstance(found, str):
            raise NeojaxError(f'--prompt-file {name}: line {number} is not a JSON object with a "prompt"')
        prompts.append(found)
    if not prompts:
        raise NeojaxError(f"--prompt-file {name} holds no prompt")
    return prompts
