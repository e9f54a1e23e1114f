"""Generates text: `python sample.py RUN_OR_CHECKPOINT [--prompt TEXT] [section.key=value ...]`."""

import sys

from neojax.cli import entry

if __name__ == "__main__":
    raise SystemExit(entry(["sample", *sys.argv[1:]]))
