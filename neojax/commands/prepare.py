"""`neojax prepare INPUT... --out DIR`: text in any usual container to a folder of token stores."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from typing import Any

from neojax.data.prepare import TRAINING_TEXT, VALIDATION, prepare
from neojax.data.prepare_sft import FORMAT, prepare_sft
from neojax.data.sentences import WAYS
from neojax.data.tokenizer import KINDS
from neojax.errors import NeojaxError
from neojax.files import ending_cleanly


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `neojax prepare`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, folders or globs: text files (.txt .md .py ..., a document each), .jsonl, .parquet, "
        "compressed (.gz .xz .zst .bz2) or archived (.tar .zip); gpt-neo's .tfrecords, whose tokens are kept",
    )
    parser.add_argument(
        "--format",
        choices=("text", FORMAT),
        default="text",
        help="text, documents to learn whole (default); sft, .jsonl of prompts and completions, messages, or "
        "instructions and outputs, of which the answers are learnt (data.task=sft)",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="sft: a Jinja template that writes conversations (default: that beside the tokenizer, or a "
        "plain one)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.json, BERT's vocab.txt, ALBERT's spiece.model, or a folder with one",
    )
    which.add_argument(
        "--train-tokenizer",
        type=int,
        metavar="VOCAB_SIZE",
        help="train a tokenizer of that many ids on the training documents (their first "
        f"{TRAINING_TEXT >> 30} GiB)",
    )
    parser.add_argument(
        "--tokenizer-kind",
        choices=KINDS,
        help="what to train: bpe, byte-level as GPT-2's (default); wordpiece, BERT's; unigram, ALBERT's",
    )
    parser.add_argument(
        "--cased",
        action="store_true",
        help="train a wordpiece or unigram tokenizer that keeps upper case and accents",
    )
    parser.add_argument(
        "--validation",
        type=float,
        default=VALIDATION,
        metavar="FRACTION",
        help="share of the documents to hold out, chosen by a hash of their text (default %(default)s)",
    )
    parser.add_argument(
        "--text-key", default="text", metavar="NAME", help="field or column of the text (default text)"
    )
    parser.add_argument(
        "--eod", metavar="TOKEN", help="end-of-document token (default: the tokenizer's usual one)"
    )
    parser.add_argument(
        "--sentences",
        choices=WAYS,
        help="keep where sentences end, which training on pairs of segments needs (data.pairs): each line is "
        "one, or they are told by marks such as the full stop",
    )
    parser.add_argument(
        "--paragraphs",
        action="store_true",
        help="a blank line ends a document, as in Google's text for BERT, with a sentence a line",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="encoding processes (default: one for each core)"
    )
    parser.add_argument("--force", action="store_true", help="replace what DIR holds already")


def run(args: Namespace) -> None:
    """Runs `neojax prepare` with parsed arguments and prints the counts. Raises `NeojaxError`."""
    options = {k: v for k, v in vars(args).items() if k in _OPTIONS}
    with ending_cleanly():
        if args.format == FORMAT:
            counts = prepare_sft(args.inputs, args.out, **_sft_options(args))
        elif args.chat_template is not None:
            raise NeojaxError("--chat-template is for --format sft; leave it out")
        else:
            counts = prepare(args.inputs, args.out, **options, progress=True)
    print("\n".join(counts.lines()))
    use = f"data.task=sft data.train={args.out}" if args.format == FORMAT else f"data.train={args.out}"
    if counts.validation.documents:
        use += f" data.validation={args.out}"
    elif args.validation:
        print("note: no document fell into validation; give more documents or a larger --validation")
    print(f"written to {args.out}: train with {use}")


def _sft_options(args: Namespace) -> dict[str, Any]:
    """The options that `--format sft` takes. Raises `NeojaxError` for any other that is given."""
    usual = {"text_key": "text", "workers": None}
    others = set(_OPTIONS) - {"tokenizer", "validation", "eod", "force", "workers"}
    given = [name for name in sorted(others) if getattr(args, name) not in (None, False, usual.get(name))]
    if given:
        raise NeojaxError(f"--{given[0].replace('_', '-')} is not for --format sft; leave it out")
    names = ("tokenizer", "chat_template", "validation", "eod", "force")
    return {name: getattr(args, name) for name in names}


_OPTIONS: Iterable[str] = (
    "tokenizer",
    "train_tokenizer",
    "tokenizer_kind",
    "cased",
    "validation",
    "workers",
    "text_key",
    "eod",
    "sentences",
    "paragraphs",
    "force",
)
