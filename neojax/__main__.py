"""`python -m neojax` is the command line."""

from neojax.cli import main

raise SystemExit(main())
