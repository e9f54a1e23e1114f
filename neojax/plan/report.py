"""What `neojax plan` says of a compiled step: one dictionary, which is printed as JSON or as a person reads
it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from neojax.config import Config
from neojax.data.share import Share
from neojax.layout.devices import shape_text
from neojax.layout.mesh import Layout
from neojax.models.flops import flops_per_token
from neojax.plan.compiled import Compiled
from neojax.plan.estimate import Analysis, duration
from neojax.plan.machine import Machine
from neojax.plan.remedies import Remedy
from neojax.plan.slice_view import ranges


def of_step(config: Config, topology: str, one: Compiled, analysis: Analysis | None = None) -> dict[str, Any]:
    """Of a compiled step: machine, memory, FLOPs, collectives, hosts. Bytes, unless a name says otherwise.
    analysis: of the same step, counted."""
    return {
        **of_program(config, topology, one),
        **flops_of(config, one.layout.mesh.size, analysis),
        "hosts": hosts(config, one.layout),
    }


def of_program(config: Config, topology: str, one: Compiled) -> dict[str, Any]:
    """Of a compiled program: machine, memory, collectives."""
    mesh = one.layout.mesh
    return {
        "topology": topology,
        "devices": mesh.size,
        "device_kind": one.layout.device.device_kind,
        "mesh": shape_text(mesh.shape),
        "layout": config.mesh.layout,
        "param_layout": config.mesh.param_layout,
        "compiled": {"quick": one.quick, "seconds": one.seconds},
        "fits": one.fits,
        "memory": _memory(one),
        "collectives": [asdict(row) for row in one.moved],
    }


def of_machine(config: Config, layout: Layout, on: Machine) -> dict[str, Any]:
    """Of a program that nothing compiles: the machine and the layout."""
    return {
        "topology": str(on),
        "devices": on.devices,
        "device_kind": on.chip.kinds[0],
        "mesh": shape_text(layout.mesh.shape),
        "layout": config.mesh.layout,
        "param_layout": config.mesh.param_layout,
        "compiled": None,
    }


def _memory(one: Compiled) -> dict[str, Any]:
    """Bytes of one device."""
    memory = one.memory
    if memory is None:
        return {"available": one.available}
    return {
        "available": one.available,
        "needed": memory.needed,
        **{kind.replace(" ", "_"): n for kind, n in memory.kinds.items()},
        "unused": memory.unused,
        "most_gradients": memory.gradients,
        "most_activations_kept": memory.kept,
        "largest": [asdict(buffer) for buffer in memory.largest],
    }


def hosts(config: Config, layout: Layout) -> list[dict[str, Any]]:
    """Of every host: its devices, the rows of each microbatch that it reads, and the tokens of a step."""
    by_host: dict[int, list[jax.Device]] = {}
    for device in layout.mesh.devices.flat:  # type: ignore[union-attr]
        by_host.setdefault(device.process_index, []).append(device)
    rows = config.train.microbatch or config.train.batch_size
    return hosts_of(
        config,
        [(host, len(own), list(Share(layout, rows, own).held)) for host, own in sorted(by_host.items())],
    )


def hosts_of(config: Config, held: Sequence[tuple[int, int, Sequence[int]]]) -> list[dict[str, Any]]:
    """What is said of hosts. held: (number, devices, rows of each microbatch) of each."""
    parts = config.train.batch_size // (config.train.microbatch or config.train.batch_size)
    return [
        {
            "host": host,
            "devices": devices,
            "rows": ranges(rows),
            "rows_per_step": len(rows) * parts,
            "tokens_per_step": len(rows) * parts * config.model.n_ctx,
        }
        for host, devices, rows in held
    ]


def flops_of(config: Config, devices: int, analysis: Analysis | None) -> dict[str, Any]:
    """Tokens of a step, and FLOPs of one device: those of the model's mathematics, and all that the products
    of the program have, recomputed ones too, where they are counted."""
    tokens = config.train.batch_size * config.model.n_ctx
    return {
        "tokens_per_step": tokens,
        "model_flops_per_device": flops_per_token(config.model) * tokens / devices,
        "executed_flops_per_device": analysis.work.flops if analysis else None,
    }


def with_remedies(report: dict[str, Any], before: int, found: Sequence[Remedy]) -> dict[str, Any]:
    """A report of a step that does not fit, with what helps. before: bytes that it needs as `found` were
    tried."""
    return {**report, "helps": {"needed_before": before, "changes": [asdict(one) for one in found]}}


def print_report(report: Mapping[str, Any]) -> None:
    """A report of `of_step` as a person reads it."""
    print_machine(report)
    print_memory(report)
    if "helps" in report:
        _print_helps(report["helps"], bool(report["compiled"]))
    print(f"\nmodel FLOPs of a device and step: {report['model_flops_per_device']:.3e}", end="")
    executed = report["executed_flops_per_device"]
    print(f"; of its products, recomputed ones too: {executed:.3e}" if executed else "")
    if report["fits"] or not report["compiled"]:
        print_collectives(report, "a step")
    _print_hosts(report)


def print_machine(report: Mapping[str, Any]) -> None:
    """The line on the machine and the layout."""
    made = "by the analytic model alone, nothing is compiled"
    if report["compiled"]:
        effort = ", with little effort" if report["compiled"]["quick"] else ""
        made = f"compiled in {report['compiled']['seconds']:.0f} s{effort}"
    print(
        f"{report['topology']}: {report['devices']} x {report['device_kind']}, mesh {report['mesh']}, layout "
        f'"{report["layout"]}", param_layout "{report["param_layout"]}"; {made}'
    )


def print_memory(report: Mapping[str, Any], of: str = "") -> None:
    """Whether it fits, what memory holds when it is fullest, and the largest buffers. of: what takes it."""
    memory = report["memory"]
    room = memory["available"]
    if "needed" not in memory:
        print("\nmemory: " + ("it fits" if report["fits"] else f"does NOT fit into {gb(room)}"))
        return
    needed = memory["needed"]
    verdict = f"fits: {gb(needed)} of {gb(room)} a device" if room else f"{gb(needed)} a device"
    if room and not report["fits"]:
        verdict = f"does NOT fit: {gb(needed)} a device, of {gb(room)}: {gb(needed - room)} too much"
    print(f"\n{of}memory {verdict}; when it is fullest:")
    if report.get("room_is"):
        print(f"  a device has room for {report['room_is']}")
    kinds = ("parameters", "optimizer", "batch", "gradients", "activations_kept", "temporaries", "unused")
    table = table_of("what", "bytes", right=("bytes",))
    for kind in kinds:
        more = {"gradients": "most_gradients", "activations_kept": "most_activations_kept"}.get(kind)
        other = f"  (at most {gb(memory[more])})" if more and memory[more] > 1.01 * memory[kind] else ""
        if memory[kind]:
            table.add_row(f"  {kind.replace('_', ' ')}{other}", gb(memory[kind]))
    show(table)
    print("the largest buffers then:")
    table = table_of("bytes", "type", "holds", right=("bytes",))
    for one in memory["largest"]:
        table.add_row("  " + gb(one["bytes"]), one["shape"], one["holds"])
    show(table)


def _print_helps(helps: Mapping[str, Any], is_compiled: bool) -> None:
    before = helps["needed_before"]
    if not helps["changes"]:
        print("\nno setting alone helps; take more devices, or split more dimensions over those there are")
        return
    made = "compiled with little effort" if is_compiled else "by the analytic model"
    print(f"\nwhat helps, {made} ({gb(before)} a device as it is):")
    right = ("a device", "less by", "estimated step")
    table = table_of("change", *right[:2], "", right[2], right=right)
    for one in helps["changes"]:
        less, said = gb(before - one["needed"]), "fits" if one["fits"] else "still too much"
        step = duration(one["seconds"]) if one["seconds"] else ""
        table.add_row("  " + one["change"], gb(one["needed"]), less, said, step)
    show(table)


def print_collectives(report: Mapping[str, Any], of: str) -> None:
    """The collectives of a program. of: what it computes."""
    rows = report["collectives"]
    if not rows:
        print("collectives: none")
        return
    split = report["compiled"] and any(row["crosses"] for row in rows)
    group = "; between slices one chip of each is a group" if split else ""
    print(f"\ncollectives of {of} (bytes of the whole arrays, as a group has them{group}):")
    table = table_of(
        "kind",
        "over",
        "type",
        "crosses slices" if report["compiled"] else "over the network",
        "beside computation",
        "runs",
        "bytes",
        right=("runs", "bytes"),
    )
    for row in rows:
        if row["bytes"] < 1e-4 * rows[0]["bytes"]:
            continue
        crosses, beside = ("yes" if row[name] else "no" for name in ("crosses", "beside"))
        if row["beside"] and (not report["compiled"] or report["compiled"]["quick"]):
            beside = "may"
        table.add_row(
            "  " + row["kind"], row["axes"], row["types"], crosses, beside, str(row["runs"]), gb(row["bytes"])
        )
    show(table)


def _print_hosts(report: Mapping[str, Any]) -> None:
    rows = report["hosts"]
    if not rows:  # by the model of a slice that nobody has laid out
        return
    rate = ""
    if "estimate" in report:  # else no time is known
        most = max(row["tokens_per_step"] for row in rows)
        rate = f"; its loader must give {most / report['estimate']['seconds']:,.0f} tokens a second"
    each = {(row["devices"], row["rows_per_step"], row["tokens_per_step"]) for row in rows}
    if len(each) == 1:
        devices, read, tokens = each.pop()
        print(
            f"\n{len(rows)} host(s) of {devices} device(s): each reads {read} rows a step, {tokens:,} tokens"
            f"{rate}" + " (neojax inspect --topology shows which rows)" * bool(report["compiled"])
        )
        return
    print(f"\nhosts, by the rows that each reads{rate.replace('its loader', '; a loader')}:")
    for row in rows:
        print(
            f"  {row['host']}: {row['devices']} devices, rows {row['rows']}: {row['rows_per_step']} a step, "
            f"{row['tokens_per_step']:,} tokens"
        )


def gb(count: float | None) -> str:
    """Bytes, in the largest unit of which there is one."""
    size, unit = float(count or 0), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if abs(size) < 1000 else f"{size:,.0f} {unit}"


def table_of(*titles: str, right: Sequence[str] = ()) -> Table:
    """A plain table; `right`: the titles of columns of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", no_wrap=True)
    return table


def show(table: Table) -> None:
    """Prints a table, as wide as it is where nobody looks."""
    Console(width=None if Console().is_terminal else 200, soft_wrap=True).print(table)
