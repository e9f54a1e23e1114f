"""`neojax inspect`: what a configuration means, before it costs anything."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import jax

from neojax import config as configuration
from neojax.config import Config
from neojax.convert import configs
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout, abstract_layout, make_layout
from neojax.layout.topology import tpu_devices
from neojax.plan.auto import resolved
from neojax.plan.machine import machine
from neojax.plan.model_table import print_model
from neojax.plan.picture import draw_layout, flows_of, title_of
from neojax.plan.picture_file import check_picture, save_picture
from neojax.plan.slice_view import print_slice
from neojax.runs import base, integrity
from neojax.runs.bucket_shelf import shelf_of
from neojax.storage.remote import place


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax inspect`."""
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG_OR_RUN",
        help="a configuration (GPT-NeoX's in several files, too), a run directory or a Hugging Face one",
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
        help=(
            "lay the mesh on a TPU slice that is not here, such as v5e:16x16, and show every host's chips "
            "and rows"
        ),
    )
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="draw the mesh as it lies, what a device holds of every tensor, and what moves over which axis",
    )
    parser.add_argument("--keys", action="store_true", help="list every configuration key instead")


def run(args: Namespace) -> None:
    """Prints the table."""
    if args.keys:
        print_keys()
        return
    if not args.config:
        raise NeojaxError("name a configuration, a run or Hugging Face directory, or give --keys")
    check_picture(args.picture)
    path = place(args.config)
    if args.verify:
        verify(path)
        return
    if path.is_dir():
        config = configs.of_folder(path, args.overrides)
    else:
        config = configs.load(*configs.words(args.config, args.overrides), asks=False)
    on = machine(args.topology) if args.topology else None
    if on and not on.chip.axes:
        raise NeojaxError(
            f"--topology {args.topology}: the mesh is laid on TPU slices; leave it out for GPUs"
        )
    config = resolved(config, on)
    layout = None
    if args.topology:
        layout = on_slice(config, args.topology)
    else:
        print_model(config)
    if args.picture:
        layout = layout or abstract_layout(config.mesh)
        on = on or machine(f"h100:{layout.mesh.size}")  # of any kind: what moves is the same
        title = title_of(args.config, args.topology or "")
        picture = draw_layout(config, layout, title, flows_of(config, on))
        save_picture(args.picture, picture)


def on_slice(config: Config, topology: str) -> Layout:
    """Prints the model, and the mesh as it lies on `topology`, which is returned. Raises `NeojaxError` where
    the layout does not fit there."""
    jax.config.update("jax_platforms", "cpu")  # nothing runs
    layout = make_layout(replace(config.mesh, cpu_devices=0), tpu_devices(topology))
    print_model(config, layout)
    print_slice(config, layout)
    return layout


def verify(run_dir: str | Path) -> None:
    """Reads all files of all checkpoints of a run, which may be training (in a bucket: asks for their
    checksums), and of the base of low-rank additions, and says of each whether it is what was written. Raises
    `NeojaxError` where one is not, or where there is none."""
    steps, damaged = _verified(run_dir, "checkpoint")
    if not steps:
        raise NeojaxError(f"{run_dir} has no checkpoints to verify; name a run directory")
    frozen = place(run_dir) / base.FOLDER
    if frozen.is_dir() and _verified(frozen, "base")[1]:
        raise NeojaxError(f"{frozen} is damaged; restore it from a copy")
    if damaged:
        whole = sorted(set(steps) - set(damaged))
        raise NeojaxError(
            f"{len(damaged)} of {len(steps)} checkpoints of {run_dir} are damaged: "
            f"{', '.join(map(str, damaged))}; restore them from a copy; the last whole one is "
            f"{max(whole) if whole else 'none'}"
        )


def _verified(run_dir: str | Path, what: str) -> tuple[list[int], list[int]]:
    """The steps of the checkpoints in `run_dir`, each of which is `what`, and those that are damaged."""
    shelf, damaged = shelf_of(run_dir), []
    try:
        steps = shelf.steps()
    except OSError as e:
        raise NeojaxError(f"cannot read {run_dir}/checkpoints: {e.strerror or e}") from None
    for step in steps:
        fault, listing = None, None
        try:
            listing = shelf.listing(step)
            fault = shelf.fault(step)
        except FileNotFoundError:
            fault = f"{integrity.FILES} is missing"
        except (OSError, ValueError) as e:
            fault = str(e)
        if fault and not shelf.reading(step).exists():
            print(f"{what} {step}: removed meanwhile, by the run that trains")
        elif fault or listing is None:
            damaged.append(step)
            print(f"{what} {step}: DAMAGED: {fault}")
        else:
            sums = "" if listing.has_sums else "; sizes alone compared, it has no checksums"
            print(f"{what} {step}: whole, {len(listing.files)} files, {listing.bytes:,} bytes{sums}")
    return steps, sorted(damaged)


def print_keys() -> None:
    """Every configuration key with type, default and meaning."""
    for name, kind, default, doc in configuration.describe():
        print(f"{name}: {kind} = {default!r}\n    {doc}")
