"""What the commands that use a trained model share: which model, with which adapter, on which mesh; and that
Ctrl-C ends them."""

import contextlib
import os
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

from neojax import config
from neojax.config import MeshConfig
from neojax.convert import hf
from neojax.errors import NeojaxError
from neojax.loading import find_run, load, with_adapter
from neojax.models import Transformer


def add_adapter(parser: ArgumentParser) -> None:
    """The option that names an adapter for the model."""
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        help="a folder of PEFT's (adapter_config.json), whose low-rank additions the model gets",
    )


def opened(args: Namespace, overrides: Sequence[str], dtype: str = "auto") -> Transformer:
    """The model that `args.source`, and what else of a command says which, name, on the mesh of `overrides`.
    Raises `NeojaxError`."""
    kept = getattr(args, "weights", "auto")
    mesh = mesh_of(args.source, overrides)
    return load(args.source, mesh=mesh, dtype=dtype, weights=kept, adapter=args.adapter)


def mesh_of(source: str, overrides: Sequence[str]) -> MeshConfig | None:
    """The mesh of the run with `overrides`, or None (one device) without any. Raises `NeojaxError`."""
    if not overrides:
        return None
    for override in overrides:
        if not override.startswith("mesh."):
            raise NeojaxError(
                f"override {override!r}: this command takes those of the mesh, such as mesh.cpu_devices=8"
            )
    path, _ = with_adapter(source)
    raw = {}
    if not hf.is_hf_dir(path):
        raw = {"mesh": config.to_dict(config.load(find_run(path)[0] / "config.yml").mesh)}
    return config.from_dict(raw, overrides, source=source).mesh


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside, Ctrl-C ends the process, which has nothing to lose: JAX swallows a KeyboardInterrupt that is
    raised within its callbacks. Where somebody else handles or ignores the signal, it is left to them."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def end(*_: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
