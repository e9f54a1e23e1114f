"""`neojax plan`: what a training step needs and sends on a machine that need not be here, from the real
compiler."""

import json
import math
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from neojax.config import Config
from neojax.convert import configs
from neojax.errors import NeojaxError
from neojax.layout.chips import CHIPS
from neojax.layout.processes import has_tpu
from neojax.layout.slice_names import larger
from neojax.layout.topology import hush, tpu_devices
from neojax.models.inference import check_weights
from neojax.output import complain
from neojax.plan.as_compiled import as_compiled
from neojax.plan.auto import here, is_auto, resolved
from neojax.plan.bars import draw_plan
from neojax.plan.candidates import Found
from neojax.plan.compiled import compile_step
from neojax.plan.cost import EVERY, of_analysis, print_estimate, print_sweep, sweep
from neojax.plan.cost_picture import draw_costs
from neojax.plan.decoding import compile_decoding, count_decoding, of_decoding, print_decoding
from neojax.plan.estimate import analyse
from neojax.plan.machine import Machine, machine
from neojax.plan.modelled import of_model
from neojax.plan.picture import title_of
from neojax.plan.picture_file import check_folder, check_picture, save_picture
from neojax.plan.remedies import Trial, Trying, more_chips, ordered, remedies
from neojax.plan.report import of_step, print_report, with_remedies
from neojax.plan.search import MINUTES, Ranked, listed, print_search, search, winner_text
from neojax.plan.trace import layout_of
from neojax.storage.remote import place

HERE = "here"
FINALISTS = 3


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax plan`."""
    parser.add_argument(
        "config",
        metavar="CONFIG_OR_RUN",
        help="a configuration (GPT-NeoX's in several files, too), a run directory or a Hugging Face one",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values to change")
    parser.add_argument(
        "--topology",
        metavar="T",
        default=HERE,
        help=(
            "the machine: a TPU slice such as v5e:16x16 or v5p:4x4x4, 2xv5e:8x8 for two slices that a "
            "network joins, GPUs such as h100:64, by the analytic model alone, or here (default): the "
            "devices at hand; with --tokens also several, with commas, or all (default): usual ones"
        ),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=(
            "compile with little effort, in seconds instead of minutes: the same collectives, up to a third "
            "more temporaries"
        ),
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="plan sampling instead: how many rows fit, and what bounds their tokens a second",
    )
    parser.add_argument(
        "--weights", default="auto", metavar="T", help="with --decode: as for `neojax sample`, such as int8"
    )
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="draw memory, time and collectives of the step as bars, too; of costs, days against chips",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help=(
            "find the layout, recomputation and microbatch with which the machine trains soonest: candidates "
            "by the analytic model, the best of them compiled"
        ),
    )
    parser.add_argument(
        "--finalists",
        type=count,
        metavar="N",
        help=f"with --search: so many are compiled (default: {FINALISTS})",
    )
    parser.add_argument(
        "--minutes",
        type=positive,
        metavar="N",
        help=f"with --search: after so many nothing more is begun (default: {MINUTES:g})",
    )
    parser.add_argument(
        "--out", metavar="FILE.yml", help="with --search: where the best goes (default: NAME.MACHINE.yml)"
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="what training on so many tokens costs, such as 300e9, by the analytic model alone",
    )
    parser.add_argument(
        "--price-per-chip-hour",
        type=positive,
        metavar="X",
        help="US dollars of one chip in one hour (default: a list price, where one is known)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; of several machines, a list"
    )


def run(args: Namespace) -> None:
    """Prints the plan."""
    check_picture(args.picture)
    check_folder("--out", args.out)
    if args.weights != "auto" and not args.decode:
        raise NeojaxError("--weights is of sampling; give --decode too, or leave it out")
    if not args.search and (args.out or args.finalists is not None or args.minutes is not None):
        raise NeojaxError("--out, --finalists and --minutes are of --search; give it too, or leave them out")
    if args.picture and args.decode:
        raise NeojaxError("--picture draws a training step; leave it out with --decode")
    if args.price_per_chip_hour and (args.decode or args.search):
        raise NeojaxError("--price-per-chip-hour is of a run; leave it out with --decode and --search")
    path = place(args.config)
    if path.is_dir():
        config = configs.of_folder(path, args.overrides)
    else:
        config = configs.load(*configs.words(args.config, args.overrides), asks=False)
    if args.search:
        look(config, args)
        return
    if args.tokens or is_modelled(args.topology):
        cost(config, args)
        return
    if args.topology == HERE and not has_tpu():
        hush(os.environ)
    if is_auto(config.mesh):
        on = None if args.topology == HERE else machine(args.topology)
        config = resolved(config, on, complain if args.json else print)
    devices = None
    if args.topology != HERE:
        jax.config.update("jax_platforms", "cpu")  # nothing runs
        devices = tpu_devices(args.topology)
        config = replace(config, mesh=replace(config.mesh, cpu_devices=0))
    if args.decode:
        check_weights(args.weights)
        found = compile_decoding(config, devices, args.weights, args.quick)
        report = of_decoding(config, args.topology, found)
    else:
        report = planned(config, args.topology, devices, args.quick, args.price_per_chip_hour)
    if args.picture:
        save_picture(args.picture, draw_plan(report, title_of(args.config, args.topology)))
    tell(report, args)
    if args.price_per_chip_hour and "estimate" not in report:
        complain(f"no speed is known of {report['device_kind']}, so that --price-per-chip-hour tells nothing")


def tell(report: dict[str, Any], args: Namespace) -> None:
    """Prints a plan as the arguments want it."""
    if args.json:
        print(json.dumps(report))
    elif args.decode:
        print_decoding(report)
    else:
        print_report(report)
        if "estimate" in report:
            print_estimate(report["estimate"])


def positive(text: str) -> float:
    """A number above 0, as arguments give it."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def count(text: str) -> int:
    """A whole number, 0 or more, as arguments give it."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def is_modelled(topology: str) -> bool:
    """Whether the analytic model alone speaks of a machine: of GPUs, for which nothing can be compiled
    without one, and of several machines. Raises `NeojaxError` where there is none such."""
    if topology == HERE:
        return False
    return topology == "all" or "," in topology or not machine(topology).chip.axes


def cost(config: Config, args: Namespace) -> None:
    """Prints what a run costs on one machine or several, by the analytic model."""
    if args.decode and (args.tokens or args.topology == "all" or "," in args.topology):
        raise NeojaxError("--decode is of one machine, and --tokens of training: leave one out")
    jax.config.update("jax_platforms", "cpu")  # nothing runs
    config = replace(config, mesh=replace(config.mesh, cpu_devices=0))
    if args.decode:
        check_weights(args.weights)
        on = machine(args.topology)
        config = resolved(config, on, complain if args.json else print)
        report = of_decoding(config, args.topology, count_decoding(config, on, args.weights))
        tell(report, args)
        return
    wanted = EVERY if args.topology in (HERE, "all") else tuple(args.topology.split(","))
    if len(wanted) == 1:
        on = machine(wanted[0])
        config = resolved(config, on, complain if args.json else print)
        report = modelled(config, on, args.tokens, args.price_per_chip_hour)
        if args.picture:
            save_picture(args.picture, draw_plan(report, title_of(args.config, wanted[0])))
        tell(report, args)
        return
    rows = list(sweep(config, wanted, args.tokens, args.price_per_chip_hour))
    if args.picture:
        save_picture(args.picture, draw_costs(rows, Path(args.config).stem))
    if args.json:
        print(json.dumps(rows))
    else:
        print_sweep(rows, config)


def look(config: Config, args: Namespace) -> None:
    """Searches, prints what was found, and writes the best as a configuration."""
    if args.decode or args.picture or args.tokens:
        raise NeojaxError("--search ranks training steps; leave --decode, --picture and --tokens out")
    if args.topology == HERE:
        raise NeojaxError("--search needs a machine: --topology, such as v5e:8x8 or h100:64")
    on = machine(args.topology)
    out = Path(args.out or f"{Path(args.config).stem}.{str(on).replace(':', '-')}.yml")
    if out.exists():
        raise NeojaxError(f"{out} is there already; name another file with --out, or remove it")
    jax.config.update("jax_platforms", "cpu")  # nothing runs
    config = replace(config, mesh=replace(config.mesh, cpu_devices=0))
    say = print if not args.json else complain
    finalists = FINALISTS if args.finalists is None else args.finalists
    if not on.chip.axes:
        finalists = 0
    if finalists > 0:
        tpu_devices(args.topology)  # says so where there is no such slice, or nothing to compile with

    def before(ranked: Sequence[Ranked], found: Found) -> None:
        if not args.json:
            print("\nby the model alone:")
            print_search(ranked, found, short=True)
            print(flush=True)

    minutes = args.minutes or MINUTES
    ranked, found = search(config, on, finalists=finalists, minutes=minutes, say=say, show=before)
    out.write_text(winner_text(ranked, found, config, on), encoding="utf-8")
    if args.json:
        print(json.dumps({"topology": str(on), "best": str(out), "candidates": listed(ranked)}))
        return
    print()
    print_search(ranked, found)
    print(f"\nthe best is written to {out}")


def planned(
    config: Config,
    topology: str,
    devices: Sequence[jax.Device] | None,
    quick: bool,
    price: float | None = None,
) -> dict[str, object]:
    """The report on the step of `config`; of one that does not fit, with what helps. price: as of
    `of_analysis`."""
    one = compile_step(config, devices, quick)
    own = list(one.layout.mesh.devices.flat)  # type: ignore[union-attr]
    on = here(own) if topology == HERE else machine(topology)
    is_known = on.chip.name in CHIPS  # else nothing is known of its speed
    analysis = analyse(config, on) if is_known else None
    report = of_step(config, topology, one, analysis)
    if analysis:
        takes = one.fits and on.chip.axes > 0  # else the program has not been read, or not by what is known
        timed = as_compiled(analysis, one.moved) if takes else analysis
        by = {"collectives": "compiled" if takes else "model", "seconds_by_model": analysis.estimate.seconds}
        report |= {"estimate": of_analysis(timed, price=price) | by}
    if one.fits:
        return report

    def tried(changed: Config, wanted: Machine = on) -> Trial | None:
        """Compiles with little effort, on another machine than this where `wanted` is one."""
        there = devices if wanted is on else tpu_devices(str(wanted))
        found = compile_step(changed, there, quick=True)
        seconds = analyse(changed, wanted).estimate.seconds if is_known else None
        return Trial(found.memory.needed, found.fits, seconds) if found.memory else None

    known = Trial(one.memory.needed, one.fits) if one.memory and one.quick else None
    before = known or tried(config) or Trial(0, False)
    found = remedies(config, one.layout, before, tried, by_model(on))
    if devices is not None and (wanted := larger(topology)):
        more = more_chips(config, wanted, before, lambda own: tried(own, machine(wanted)))
        found = ordered([*found, *([more] if more else [])])
    return with_remedies(report, before.needed, found)


def by_model(on: Machine) -> Trying:
    """Tries configurations on a machine by the model alone."""

    def tried(changed: Config) -> Trial:
        found = analyse(changed, on)
        return Trial(found.work.memory.total, found.fits, found.estimate.seconds)

    return tried


def modelled(config: Config, on: Machine, tokens: float | None, price: float | None) -> dict[str, Any]:
    """The report on the step of `config` by the analytic model alone; of one that does not fit, with what
    helps. With `tokens`, the numbers of the run stand in it as in the rows of several machines."""
    analysis = analyse(config, on)
    row = of_analysis(analysis, tokens, price)
    report = of_model(analysis) | (row if tokens else {}) | {"room_is": row["room_is"], "estimate": row}
    if analysis.fits:
        return report
    before = by_model(on)(config)
    assert before is not None
    found = remedies(config, layout_of(config, on), before, by_model(on), by_model(on))
    if wanted := twice(on):
        more = more_chips(config, wanted, before, by_model(machine(wanted)))
        found = ordered([*found, *([more] if more else [])])
    return with_remedies(report, before.needed, found)


def twice(on: Machine) -> str | None:
    """The machine with twice the chips; None where there is no usual one."""
    return larger(str(on)) if on.chip.axes else str(replace(on, shape=(2 * on.chips,)))
