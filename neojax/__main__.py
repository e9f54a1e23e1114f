"""`python -m neojax` is the command line."""

from neojax.cli import entry

raise SystemExit(entry())
