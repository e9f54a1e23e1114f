"""Generates text: `python sample.py RUN_OR_CHECKPOINT [--prompt TEXT] [section.key=value ...]`."""

import sys

from neojax.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["sample", *sys.argv[1:]]))
