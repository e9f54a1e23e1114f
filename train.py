"""Trains a model: `python train.py CONFIG.yml [section.key=value ...]`; the same command goes on with a
run."""

import sys

from neojax.cli import entry

if __name__ == "__main__":
    raise SystemExit(entry(["train", *sys.argv[1:]]))
