"""`neojax inspect`: what a configuration means, before it costs anything."""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from neojax import config as configuration
from neojax.config import Config
from neojax.errors import NeojaxError

if TYPE_CHECKING:
    from neojax.mesh import Layout

MOMENT_BYTES = {"float32": 4, "bfloat16": 2}


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax inspect`."""
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG_OR_RUN", help="a configuration or a run directory"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values to change")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every checkpoint of a run, and compare it with its checksums",
    )
    parser.add_argument(
        "--topology",
        metavar="T",
        help="lay the mesh on a TPU slice that is not here, such as v5e:16x16, and show every host's chips and rows",
    )
    parser.add_argument("--keys", action="store_true", help="list every configuration key instead")


def run(args: Namespace) -> None:
    """Prints the table."""
    if args.keys:
        print_keys()
        return
    if not args.config:
        raise NeojaxError("name a configuration or a run directory, or give --keys")
    path = Path(args.config)
    if args.verify:
        verify(path)
        return
    read = configuration.of_run if path.is_dir() else configuration.load
    config = read(path, args.overrides)
    if args.topology:
        on_slice(config, args.topology)
    else:
        print_model(config)


def on_slice(config: Config, topology: str) -> None:
    """The model, and the mesh as it lies on `topology`. Raises `NeojaxError` where the layout does not fit there."""
    import jax

    from neojax.mesh import make_layout
    from neojax.slice_view import print_slice
    from neojax.topology import tpu_devices

    jax.config.update("jax_platforms", "cpu")  # nothing runs
    layout = make_layout(replace(config.mesh, cpu_devices=0), tpu_devices(topology))
    print_model(config, layout)
    print_slice(config, layout)


def verify(run_dir: Path) -> None:
    """Reads all files of all checkpoints of a run, which may be training, and says of each whether it is what was
    written. Raises `NeojaxError` where one is not, or where there is none."""
    from neojax.training import integrity
    from neojax.training.run_dir import checkpoints_in

    try:
        steps = checkpoints_in(run_dir)
    except OSError as e:
        raise NeojaxError(f"cannot read {run_dir}/checkpoints: {e.strerror or e}") from None
    if not steps:
        raise NeojaxError(f"{run_dir} has no checkpoints to verify; name a run directory")
    whole = set(steps)
    for step in steps:
        folder = run_dir / "checkpoints" / str(step)
        fault, listing = None, None
        try:
            listing = integrity.listing(folder)
            fault = listing.fault(folder)
        except FileNotFoundError:
            fault = f"{integrity.FILES} is missing"
        except (OSError, ValueError) as e:
            fault = str(e)
        if fault and not folder.exists():
            print(f"checkpoint {step}: removed meanwhile, by the run that trains")
        elif fault or listing is None:
            whole.remove(step)
            print(f"checkpoint {step}: DAMAGED: {fault}")
        else:
            sums = "" if listing.has_sums else "; sizes alone compared, it has no checksums"
            print(f"checkpoint {step}: whole, {len(listing.files)} files, {listing.bytes:,} bytes{sums}")
    if damaged := sorted(set(steps) - whole):
        raise NeojaxError(
            f"{len(damaged)} of {len(steps)} checkpoints of {run_dir} are damaged: {', '.join(map(str, damaged))}; restore "
            f"them from a copy; the last whole one is {max(whole) if whole else 'none'}"
        )


def print_keys() -> None:
    """Every configuration key with type, default and meaning."""
    for name, kind, default, doc in configuration.describe():
        print(f"{name}: {kind} = {default!r}\n    {doc}")


def print_model(config: Config, layout: "Layout | None" = None) -> None:
    """Every parameter: dimension names, shape, layout, bytes per device; then totals and model FLOPs.

    layout: default that of the configuration, over devices that need not be here.
    """
    from rich.console import Console
    from rich.table import Table

    from neojax.devices import shape_text
    from neojax.mesh import abstract_layout
    from neojax.models import Transformer
    from neojax.training.flops import flops_per_token

    layout = layout or abstract_layout(config.mesh)
    model = Transformer(config.model, layout)
    dims, stored = model.dims(), model.stored()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("parameter", "dimensions", "shape", "used as", "stored as"):
        table.add_column(title, no_wrap=True)
    table.add_column("bytes/device", justify="right", no_wrap=True)
    count = held = 0
    for name, value in stored.items():
        parts = math.prod(layout.split(d, stored=True) for d in dims[name])
        bytes_held = 4 * math.prod(value.shape) // parts
        true_shape = [config.model.n_vocab if d == "vocab" else n for d, n in zip(dims[name], value.shape)]
        count += math.prod(true_shape)
        held += bytes_held
        split = [
            " ".join(f"{d}:{'+'.join(axes)}" for d in dims[name] if (axes := layout.axes(d, stored=s)))
            or "whole"
            for s in (False, True)
        ]
        shape = " ".join(map(str, value.shape))
        table.add_row(name, " ".join(dims[name]), shape, *split, f"{bytes_held:,}")
    Console(width=None if Console().is_terminal else 200, soft_wrap=True).print(table)
    mesh = shape_text(layout.mesh.shape)
    padding = stored["wte"].shape[0] - config.model.n_vocab
    flops = flops_per_token(config.model)
    print(f"\n{count:,} parameters" + (f" (and {padding} rows of vocabulary padding)" if padding else ""))
    print(
        f"mesh {mesh}: {layout.mesh.size} device(s); each stores {held:,} bytes of float32 parameters", end=""
    )
    # Two moments of each parameter, the second in float32; Adafactor's factors are next to nothing.
    adam = held // 4 * (MOMENT_BYTES[config.train.moment_dtype] + 4)
    state = adam if config.train.optimizer == "adamw" else held * (config.train.adafactor_momentum > 0)
    print(f" and {state:,} of {config.train.optimizer} state" if state else "")
    print(f"{flops:,.0f} model FLOPs per trained token (3 x forward, attention to visible keys only)")
    print(f"{flops * config.model.n_ctx * config.train.batch_size:,.0f} model FLOPs per step")
