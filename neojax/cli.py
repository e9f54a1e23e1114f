"""The command line, `neojax COMMAND ...`, with the commands that `COMMANDS` names. JAX is imported by the
command that needs it."""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from neojax.errors import NeojaxError
from neojax.output import complain, drop_untaken, hold_streams, own_streams
from neojax.version import __version__

COMMANDS = {
    "train": "train a model, or go on with a run",
    "sample": "generate text from a trained model",
    "chat": "talk to a model that was trained for it",
    "fill-mask": "tell the likeliest tokens in the place of [MASK]",
    "eval": "measure a model on held-out text",
    "predict": "tell the class of texts, their tags, or the answers to questions",
    "prepare": "turn text into token stores to train on",
    "convert": "bring models from and to other formats",
    "launch": "start several processes of one job on this machine",
    "data": "show what a run is trained on",
    "inspect": "show every parameter, its layout and size, and the model's FLOPs",
    "plan": "compile a training step for machines that need not be here: does it fit, what travels",
}
"""Name -> summary; the module of that name in `neojax.commands` is imported when the command is asked for."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
TUNABLES = "GLIBC_TUNABLES"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors read as all others do, and which keeps none of them to itself."""

    def error(self, message: str) -> None:  # type: ignore[override]
        complain(f"error: {message} (see {self.prog} --help)")
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:  # argparse itself passes over what cannot be written
            (file or sys.stderr).write(message)


def entry(argv: Sequence[str] | None = None) -> int:
    """`main` for a process of its own, which `neojax train` starts anew with huge pages for large
    allocations.

    On CPU, XLA takes the temporaries of every step from the system and gives them back; with small pages some
    6 % of a step go into faulting them in. The C library reads this setting only when a process starts.
    """
    own_streams()
    argv = sys.argv[1:] if argv is None else argv
    if sys.platform == "linux" and argv[:1] == ["train"] and TUNABLES not in os.environ and _is_ours():
        os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return main(argv)


def _is_ours() -> bool:
    """Whether the program that runs is one of neojax's own, not somebody's that calls it, which must not
    begin again."""
    program = sys.modules["__main__"]
    if spec := getattr(program, "__spec__", None):
        return spec.name == "neojax.__main__"
    file = Path(getattr(program, "__file__", None) or "")
    return file.name == "neojax" or file.resolve() == Path(__file__).resolve().parents[1] / "train.py"


def main(argv: Sequence[str] | None = None, prog: str = "neojax") -> int:
    """Runs one command. Returns the exit status: 0, or 2 after one line `error: ...` for what the user can
    mend."""
    return guarded(lambda: _run(prog, argv))


def _run(prog: str, argv: Sequence[str] | None) -> None:
    parser = _Parser(
        prog=prog, description="Train, sample and study GPT-Neo-family language models on meshes."
    )
    parser.add_argument("--version", action="version", version=f"neojax {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    argv = sys.argv[1:] if argv is None else argv
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == asked:
            command = import_module(f"neojax.commands.{name.replace('-', '_')}")
            command.add_arguments(sub)
            sub.set_defaults(run=command.run, refuse=sub.error)
    # section.key=value may stand anywhere, also behind options, where argparse does not look for it.
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        args.refuse(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    args.run(args)


def guarded(run: Callable[[], None]) -> int:
    """Calls `run`, turning what the user can mend into one line on stderr and an exit status; warnings are
    lines, too."""
    hold_streams()
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
                run()
        except SystemExit as e:  # argparse's, after --help too
            if e.code:
                raise
        sys.stdout.flush()
    except NeojaxError as e:
        complain(f"error: {e}")
        return e.status
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        return 141
    except OSError as e:
        if e.filename is None and e.errno not in UNWRITABLE:
            raise
        what = "cannot write the output" if e.filename is None else e.filename
        complain(f"error: {what}: {e.strerror}")
        return 2
    finally:
        drop_untaken()
    return 0
