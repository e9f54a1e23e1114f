"""`neojax sample RUN_OR_CHECKPOINT [--prompt TEXT ...] [mesh.key=value ...]`."""

import json
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path

from neojax.arguments import text
from neojax.commands.opening import add_adapter, ending_at_once, mesh_of, opened
from neojax.errors import NeojaxError
from neojax.output import json_line
from neojax.sampling.generate import Sample, generate
from neojax.sampling.requests import Sampling, sample_count, usable


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax sample`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_CHECKPOINT",
        help="a run directory, RUN/checkpoints/STEP, a Hugging Face directory, or one of PEFT's",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue; repeat for several (default: none)",
    )
    prompts.add_argument(
        "--prompt-file",
        metavar="FILE",
        help='a prompt from a text file (- for standard input), or one a line from .jsonl: {"prompt": TEXT}',
    )
    number = parser.add_argument
    number("--max-new-tokens", type=int, default=128, metavar="N", help="tokens to generate (%(default)s)")
    number("--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token (%(default)s)")
    number(
        "--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0: all (%(default)s)"
    )
    number(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest tokens that together have probability P (%(default)s)",
    )
    number(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only tokens at least P times as likely as the likeliest (%(default)s)",
    )
    number(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1: tokens seen before become less likely (%(default)s)",
    )
    parser.add_argument(
        "--entmax",
        action="store_true",
        help="draw from entmax, as a model trained with train.loss=entmax wants",
    )
    number("--seed", type=int, default=0, metavar="S", help="the same seed gives the same text (%(default)s)")
    number("--num-samples", type=int, default=1, metavar="N", help="samples of each prompt (%(default)s)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeat for several"
    )
    parser.add_argument(
        "--weights",
        default="float32",
        choices=("float32", "bfloat16", "int8"),
        help="keep the matrices in fewer bytes, for slightly other text; slower on CPU (%(default)s)",
    )
    add_adapter(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object a sample: prompt, text, tokens, finish_reason",
    )
    parser.add_argument("--no-stream", action="store_true", help="print a sample only when it is complete")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="mesh.key=value",
        help="the mesh to run on, on top of the run's, as in mesh.cpu_devices=8 (default: one device)",
    )
    _let_overrides_stand_last(parser)


def _let_overrides_stand_last(parser: ArgumentParser) -> None:
    """argparse before Python 3.13 takes an optional positional argument only next to the one before it."""
    parse = parser.parse_known_args

    def parse_known_args(args=None, namespace=None):
        found, rest = parse(args, namespace)
        late = [word for word in rest if "=" in word and not word.startswith("-")]
        found.overrides = [*found.overrides, *late]
        return found, [word for word in rest if word not in late]

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign, assignment]


def run(args: Namespace) -> None:
    """Generates and prints what the arguments ask for."""
    prompts = read_prompts(args)
    mesh_of(args.source, args.overrides)  # raises for what is none
    settings = {f.name: getattr(args, f.name) for f in fields(Sampling) if hasattr(args, f.name)}
    sampling = Sampling(**settings)  # before the weights are read
    sample_count(args.num_samples)
    model = usable(opened(args, args.overrides), "continue a text")
    if model.tokenizer is None:
        raise NeojaxError(
            f"{args.source} has no tokenizer, so there is no text to continue; use neojax.generate"
        )
    streaming = not (args.json or args.no_stream) and len(prompts) * args.num_samples == 1
    if streaming:
        print(prompts[0], end="", flush=True)
    try:
        with ending_at_once():
            samples = generate(
                model,
                prompts,
                sampling=sampling,
                num_samples=args.num_samples,
                stream=(lambda _, piece: print(piece, end="", flush=True)) if streaming else None,
                return_samples=True,
            )
    finally:  # an error has a line of its own, too
        if streaming:
            print(flush=True)
    if args.json:
        for sample in samples:
            print(as_json(sample), flush=True)
    elif not streaming:
        for i, sample in enumerate(samples):
            if len(samples) > 1:
                print(f"{'' if i == 0 else chr(10)}--- {i + 1} of {len(samples)}")
            print(f"{sample.prompt}{sample.text}", flush=True)


def as_json(sample: Sample) -> str:
    """A sample as one line of JSON."""
    return json_line(
        {
            "prompt": sample.prompt,
            "text": sample.text,
            "tokens": sample.tokens,
            "finish_reason": sample.finish_reason,
        }
    )


def read_prompts(args: Namespace) -> list[str]:
    """The prompts that the arguments give; one empty prompt where they give none. Raises `NeojaxError`."""
    if args.prompt_file is None:
        return [text("--prompt", prompt) for prompt in args.prompt or [""]]
    name = args.prompt_file
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        given = data.decode("utf-8-sig")  # as documents are read for training
    except OSError as e:
        raise NeojaxError(f"cannot read --prompt-file {name}: {e.strerror or e}") from None
    except UnicodeDecodeError:
        raise NeojaxError(f"--prompt-file {name} is not UTF-8 text") from None
    if not name.endswith(".jsonl"):
        return [given.removesuffix("\n").removesuffix("\r")]  # the line end that editors add
    prompts = []
    for number, line in enumerate(given.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        prompt = entry.get("prompt") if isinstance(entry, dict) else entry
        if not isinstance(prompt, str):
            raise NeojaxError(
                f'--prompt-file {name}, line {number}: expected {{"prompt": TEXT}} or a text in quotes'
            )
        prompts.append(text(f"--prompt-file {name}, line {number}", prompt))
    if not prompts:
        raise NeojaxError(f"--prompt-file {name} has no prompts; expected one a line")
    return prompts
