"""`neojax fill-mask RUN_OR_DIR TEXT ... [--top-k K] [--json] [mesh.key=value ...]`."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from neojax.arguments import whole
from neojax.commands.opening import add_adapter, ending_at_once, opened
from neojax.errors import NeojaxError
from neojax.output import json_line
from neojax.sampling.fill_mask import Filled, check_masked, fill_mask


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax fill-mask`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_DIR",
        help="a run directory, RUN/checkpoints/STEP, or a Hugging Face directory (BERT, ALBERT)",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="TEXT",
        help='a text with one [MASK] or several, as in "The [MASK] sat"; mesh.key=value among them, such as '
        "mesh.cpu_devices=8, says what to run on (default: one device)",
    )
    parser.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="the K likeliest tokens of each mask (%(default)s)"
    )
    add_adapter(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    parser.set_defaults(overrides=[])  # those behind options


def run(args: Namespace) -> None:
    """Prints what the arguments ask for."""
    overrides = [word for word in args.words if word.startswith("mesh.") and "=" in word]
    texts = [word for word in args.words if word not in overrides]
    if not texts:
        raise NeojaxError('no text is given; give one with a mask, such as "The [MASK] sat"')
    overrides += args.overrides
    whole("--top-k", args.top_k, lambda n: n >= 1, "at least 1")  # before the weights are read
    model = opened(args, overrides)
    check_masked(model)
    with ending_at_once():
        found = fill_mask(model, texts, top_k=args.top_k)
    for number, filled in enumerate(found):
        if args.json:
            print(json_line(asdict(filled)), flush=True)
        else:
            print(*[""] * bool(number), table(filled), sep="\n", flush=True)


def shown(words: object) -> str:
    """A text in quotes and on one line, so that blanks at its ends are seen."""
    return json.dumps(words, ensure_ascii=False)


def table(filled: Filled) -> str:
    """A text, and below it a line for each token that fills a mask."""
    lines = [str(filled.text)]
    for number, fillings in enumerate(filled.masks, start=1):
        if len(filled.masks) > 1:
            lines.append(f"mask {number}")
        tokens = [shown(f.text) for f in fillings]
        width = max(map(len, tokens))
        lines += [
            f"  {f.probability:.4f}  {token.ljust(width)}  {shown(f.filled)}"
            for f, token in zip(fillings, tokens)
        ]
    return "\n".join(lines)
