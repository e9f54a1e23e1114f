"""`neojax convert SOURCE DEST`: what SOURCE is decides what is written to DEST."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from neojax.convert.hf_config import is_hf_dir
from neojax.errors import NeojaxError
from neojax.training.run_dir import is_run_dir


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax convert`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="a Hugging Face directory (GPT-Neo, GPT-2), or a run directory"
    )
    parser.add_argument(
        "dest", metavar="DEST", help="what to write: a run directory, or of a run, a Hugging Face directory"
    )


def run(args: Namespace) -> None:
    """Converts, or raises `NeojaxError` and leaves nothing behind."""
    source, dest = Path(args.source), Path(args.dest)
    if is_hf_dir(source):
        from neojax.convert import hf
        from neojax.convert.run import write_run

        write_run(hf.load(source), dest)
        print(f"wrote run directory {dest}; sample with: python sample.py {dest}")
    elif is_run_dir(source) or is_run_dir(source.parent.parent):
        from neojax.convert import hf
        from neojax.loading import load

        hf.save(load(source), dest)
        print(f"wrote Hugging Face directory {dest}")
    else:
        cause = "is not of a format that neojax converts" if source.exists() else "does not exist"
        raise NeojaxError(
            f"{source} {cause}; expected a Hugging Face directory (config.json) or a run directory (config.yml)"
        )
