"""What a whole run costs on a machine, by the analytic model: days, chip-hours, money, and what its
checkpoints take; for several machines, as a table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from neojax.config import Config
from neojax.errors import NeojaxError
from neojax.layout.chips import ALONE, FRACTIONS, gpu_fraction
from neojax.layout.devices import shape_text
from neojax.plan.auto import resolved
from neojax.plan.estimate import ONE, Analysis, analyse, duration, likened, used
from neojax.plan.machine import Machine, machine
from neojax.plan.report import gb
from neojax.plan.trace import layout_of

DAY = 86400.0
SIZES = {  # of slices and clusters that are common, to compare
    "v4": ("2x2x4", "4x4x4", "4x8x8", "8x8x8"),
    "v5e": ("4x4", "8x8", "16x16"),
    "v5p": ("2x2x4", "4x4x4", "4x8x8", "8x8x8"),
    "v6e": ("4x4", "8x8", "16x16"),
    "a100": ("8", "64", "256"),
    "h100": ("8", "64", "256"),
    "h200": ("8", "64", "256"),
}
EVERY = tuple(f"{chip}:{size}" for chip, sizes in SIZES.items() for size in sizes)


def of_analysis(one: Analysis, tokens: float | None = None, price: float | None = None) -> dict[str, Any]:
    """The estimate of a step, and of a run over `tokens` (default: all steps of the configuration), as a
    dictionary: seconds, bytes, US dollars at `price` an hour and chip (default: a list price, where one is
    known)."""
    config, estimate, chip = one.config, one.estimate, one.on.chip
    each = config.train.batch_size * config.model.n_ctx
    steps = config.train.steps if tokens is None else -(-tokens // each)
    days = steps * estimate.seconds / DAY
    hours = 24 * days * one.on.chips
    rate = chip.price if price is None else price
    return {
        "topology": str(one.on),
        "chips": one.on.chips,
        "mesh": shape_text(layout_of(config, one.on).mesh.shape),
        "layout": config.mesh.layout,
        "param_layout": config.mesh.param_layout,
        "seconds": estimate.seconds,
        "low": estimate.low,
        "high": estimate.high,
        "bound": estimate.bound,
        "parts": {
            "products": estimate.products,
            "attention": estimate.kernels,
            "memory": estimate.traffic,
            "links": estimate.links,
            "links_alone": estimate.alone,
            "network": estimate.network,
        },
        "tokens_per_second": estimate.tokens_per_second,
        "mfu": estimate.mfu,
        "needed": one.work.memory.total,
        "room": one.room,
        "room_is": room_is(one.on),
        "fits": one.fits,
        "steps": steps,
        "tokens": steps * each,
        "days": days,
        "days_low": days * estimate.low / estimate.seconds,
        "days_high": days * estimate.high / estimate.seconds,
        "chip_hours": hours,
        "price_per_chip_hour": rate,
        "price_is_listed": price is None and rate is not None,
        "dollars": None if rate is None else rate * hours,
        "checkpoint": one.work.memory.checkpoint,
        "constants": {
            name: {"value": each.value, "low": each.low, "high": each.high, "meaning": each.meaning}
            for name, each in used(one).items()
        },
        "measured_chip": estimate.known,
        "chip_is": _chip_is(one),
    }


def _chip_is(one: Analysis) -> str:
    """What is known of the steps of a chip, where that is little."""
    name = one.on.chip.name
    if one.estimate.known:
        return ""
    if name == ONE:
        return f"of {name} one step is known, on one device: the interval is twice as wide as of others"
    return (
        f"no step on {name} is known: it is taken to reach what {likened(name)} does, in twice the interval"
    )


def room_is(on: Machine) -> str:
    """What the room on a device of a machine is, in words; empty where it is as the compiler has it."""
    chip = on.chip
    if chip.axes or on.limit is not None:
        return ""
    part = gpu_fraction()
    own = f"{part:g} of the {gb(chip.reported)} that {chip.name.upper()} reports"
    if part >= ALONE:
        return own
    return (
        f"{own}, as much as JAX takes; {FRACTIONS[-1]}={ALONE:g} makes it {gb(ALONE * chip.reported)} where "
        "a run has the device to itself"
    )


def print_estimate(found: Mapping[str, Any]) -> None:
    """What `of_analysis` says, as a person reads it."""
    parts = found["parts"]
    is_compiled = found.get("collectives") == "compiled"
    by = "by the model with the collectives as compiled" if is_compiled else "by the model"
    print(
        f"\ntime of a step, {by}: {duration(found['seconds'])} ({duration(found['low'])} to "
        f"{duration(found['high'])}), bound by {found['bound']}"
    )
    if is_compiled:
        own = duration(found["seconds_by_model"])
        print(f"  with the collectives that the model counts, as its constants were fitted: {own}")
    named = [("products", "products"), ("attention", "attention"), ("memory", "memory")]
    computed = ", ".join(f"{name} {duration(parts[key])}" for name, key in named)
    print(f"  a chip computes: {computed}")
    print(
        f"  it sends: over links {duration(parts['links'])}, {duration(parts['links_alone'])} of them alone; "
        f"over the network {duration(parts['network'])}"
    )
    print(f"  {found['tokens_per_second']:,.0f} tokens/s, {found['mfu']:.1%} of the peak (MFU)")
    print(
        f"the run, {_steps(found['steps'])}, {found['tokens']:.4g} tokens: {found['days']:.3g} days "
        f"({found['days_low']:.3g} to {found['days_high']:.3g}), {_amount(found['chip_hours'])} chip-hours"
        f"{_money(found)}; a checkpoint takes {gb(found['checkpoint'])}"
    )
    constants = ", ".join(
        f"{name} {one['value']:.3g} "
        + ("(not fitted)" if one["low"] is None else f"({one['low']:.3g} to {one['high']:.3g})")
        for name, one in found["constants"].items()
    )
    print(f"constants of the model, and their spread: {constants}")
    if not found["measured_chip"]:
        print(found["chip_is"])


def _steps(number: float) -> str:
    return f"{number:,.0f} step{'' if number == 1 else 's'}"


def _amount(number: float) -> str:
    """A whole number, or three digits of what is below ten."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"


def _money(found: Mapping[str, Any]) -> str:
    if found["dollars"] is None:
        return ", no list price known (--price-per-chip-hour)"
    listed = " (a list price)" if found["price_is_listed"] else ""
    return f", ${_amount(found['dollars'])} at ${found['price_per_chip_hour']:g}{listed}"


def sweep(
    config: Config, topologies: Iterable[str], tokens: float | None, price: float | None
) -> Iterator[dict[str, Any]]:
    """`of_analysis` for every machine, or why there is none: the topology and what hinders."""
    for topology in topologies:
        machine(topology)  # a name that is none is an error, not a row
        try:
            own = resolved(config, machine(topology), say=lambda text: None)
            yield of_analysis(analyse(own, topology), tokens, price)
        except NeojaxError as e:
            yield {"topology": topology, "hinders": str(e)}


def print_sweep(rows: Sequence[Mapping[str, Any]], config: Config) -> None:
    """A table of machines, the soonest first; behind it those that cannot do it, and why."""
    done = sorted((row for row in rows if row.get("fits")), key=lambda row: row["days"])
    if done:
        first = done[0]
        print(
            f"{_steps(first['steps'])} of {config.train.batch_size} x {config.model.n_ctx} tokens, "
            f"{first['tokens']:.4g} in all; a checkpoint takes {gb(first['checkpoint'])}\n"
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("machine", "chips", "mesh", "days", "from", "to", "chip-hours", "dollars", "MFU", "bound by")
    for title in (*titles, "memory a device"):
        table.add_column(title, no_wrap=True, justify="left" if title in ("machine", "mesh") else "right")
    for row in done:
        table.add_row(
            row["topology"],
            str(row["chips"]),
            row["mesh"],
            *(f"{row[what]:.3g}" for what in ("days", "days_low", "days_high")),
            _amount(row["chip_hours"]),
            "no list price" if row["dollars"] is None else _amount(row["dollars"]),
            f"{row['mfu']:.0%}",
            row["bound"],
            f"{gb(row['needed'])} of {gb(row['room'])}",
        )
    if done:
        Console(width=None if Console().is_terminal else 200, soft_wrap=True).print(table)
    part = "" if all(machine(row["topology"]).chip.axes for row in rows) else f"{gpu_fraction():g}"
    if part:
        print(
            f"of a GPU's memory {part} is what a run gets; {FRACTIONS[-1]} of the environment says how much"
        )
    for row in rows:
        if "hinders" in row:
            print(f"{row['topology']}: {row['hinders']}")
        elif not row["fits"]:
            needed, room = row["needed"], row["room"]
            print(
                f"{row['topology']}: does not fit, {gb(needed)} a device, of {gb(room)}: {gb(needed - room)} "
                f"too much; --topology {row['topology']} alone says what helps"
            )
