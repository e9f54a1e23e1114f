"""`neojax chat RUN_OR_DIR [--system TEXT] [mesh.key=value ...]`: a conversation in the terminal."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path

from neojax.commands.opening import add_adapter, ending_at_once, mesh_of, opened
from neojax.data.chat_template import DEFAULT, of_model
from neojax.errors import NeojaxError
from neojax.loading import config_at, with_adapter
from neojax.output import complain
from neojax.sampling.chat import Chat
from neojax.sampling.requests import Sampling, usable


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `neojax chat`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_DIR",
        help="a run with data.task=sft, RUN/checkpoints/STEP, or a Hugging Face directory with a chat "
        "template",
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="what the model is told before all else")
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="how conversations are written, in Jinja (default: the model's own); plain: as User: and "
        "Assistant:",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="tokens of an answer at most (%(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="0 for the likeliest (%(default)s)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens of share P")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed (%(default)s)")
    add_adapter(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="mesh.key=value", help="the mesh to run on (default: one device)"
    )


def run(args: Namespace) -> None:
    """Reads a line, prints the answer, until there are no more lines."""
    mesh_of(args.source, args.overrides)  # raises for what is none
    template = template_for(args)
    names = {f.name for f in fields(Sampling)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    sampling = Sampling(**given)  # before the weights are read
    model = usable(opened(args, args.overrides), "chat")
    chat = Chat(model, template, sampling, args.system)
    is_terminal = sys.stdin.isatty()
    with ending_at_once():
        while True:
            print("> " if is_terminal else "", end="", flush=True)
            line = sys.stdin.readline()
            if not line:
                break
            if line.strip():
                try:
                    chat.say(line.strip(), lambda piece: print(piece, end="", flush=True))
                    print(flush=True)
                except NeojaxError as e:
                    if not is_terminal:
                        raise
                    complain(f"error: {e}")  # the conversation goes on as it was


def template_for(args: Namespace) -> str:
    """The chat template that `--chat-template` names (a file, or plain), or the one that lies beside the
    adapter or the model. Raises `NeojaxError`."""
    if args.chat_template == "plain":
        return DEFAULT
    if args.chat_template is not None:
        try:
            return Path(args.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise NeojaxError(f"--chat-template: cannot read {args.chat_template}: {e}") from None
    path, adapter = with_adapter(args.source, args.adapter)
    folders = [adapter] if adapter is not None else []
    found = next((own for own in map(of_model, [*folders, path]) if own is not None), None)
    if found is None:
        config_at(args.source, args.adapter)  # raises for what is no model
        raise NeojaxError(
            f"{args.source} has no chat template: it was not trained for conversations; name one with "
            "--chat-template FILE, or plain"
        )
    return found
