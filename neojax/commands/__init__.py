"""The commands of `neojax`, a module each: `add_arguments(parser)` and `run(args)`; `neojax.cli` loads the
one asked for."""
