"""`neojax data`: the command line of what looks at data."""

from argparse import ArgumentParser, Namespace

from neojax import config as configuration
from neojax.convert import configs
from neojax.data.show import show
from neojax.storage.remote import place


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax data`."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="print the documents of a step's batch")
    show.add_argument("path", metavar="RUN", help="a run directory, or the configuration of a run to be")
    show.add_argument(
        "--step", type=int, required=True, help="the step, as metrics.jsonl counts: the first is 1"
    )
    show.add_argument(
        "--json", action="store_true", help="one JSON object per row instead, with the token ids"
    )


def run(args: Namespace) -> None:
    """Shows the batch."""
    path = place(args.path)
    config = configuration.of_run(path) if path.is_dir() else configs.load(path)
    show(config, path, args.step, args.json)
