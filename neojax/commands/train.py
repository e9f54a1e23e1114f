"""`neojax train CONFIG.yml [section.key=value ...]`."""

from argparse import ArgumentParser, Namespace

from neojax.output import drop_untaken
from neojax.training.signals import Stop


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax train`."""
    parser.add_argument(
        "config",
        metavar="CONFIG.yml",
        help="a run's configuration (meshconfigs/ has examples), a gpt-neo JSON, or GPT-NeoX's YAML, of "
        "which several files are merged",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values to change, as in train.steps=100"
    )


def run(args: Namespace) -> None:
    """Trains, or goes on with, the run that the configuration describes."""
    with Stop(ends_process=True) as stop:
        # JAX takes seconds to import, in which a signal finds its handler.
        from neojax.convert import configs
        from neojax.evaluate.in_training import train
        from neojax.layout.hosts import told_before_joining
        from neojax.layout.peers import ends_without_peers
        from neojax.plan.auto import resolved

        files, overrides = configs.words(args.config, args.overrides)
        with ends_without_peers(), told_before_joining(overrides):
            train(resolved(configs.load(files, overrides)), stop)
    drop_untaken()  # the run is whole without it
