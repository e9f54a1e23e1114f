"""Compiler options: the training step without each option of the platform's table, one at a time, on one
device.

The table as it stands is measured first, in the middle and last, to see how far the machine drifts; then all
options together are left out. Options for collectives have nothing to do on one device, and are measured all
the same.
"""

import gc
import statistics
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import training as contenders
from jobs import Job, Row, fitting

from parts import ROUNDS, Chip, measured, one_round

BASELINE = "the table as it is"
STAND_IN = {"cpu": {"xla_llvm_disable_expensive_passes": True}}  # for --tiny, on a platform without a table


def jobs(chip: Chip, tiny: bool) -> list[Job]:
    """One process, which keeps its state from option to option."""
    common = {"model": "125M", "dtype": "bfloat16", "batch": 16, "sequence": 2048, "steps": 10}
    if tiny:
        common |= {"model": "tiny", "batch": 2, "sequence": 32, "steps": 1}
    return [Job("compiler options", each, {**common, "chip": chip["kind"], "platform": chip["platform"]}, 60)]


def each(options: Mapping[str, Any]) -> Iterator[Row]:
    """Baseline, every option left out, baseline in between and again, no option at all."""
    from neojax.training import compiler

    tables = {**STAND_IN, **compiler.OPTIONS}
    table = {**tables.get(options["platform"], {}), **tables.get(options["chip"], {})}
    known = list(known_options(table))
    for name in table:
        if name not in known:
            yield {"what": f"without {name}", "skipped": "the compiler here does not know it"}
    half = len(known) // 2
    programs: dict[
        tuple[str, ...], Any
    ] = {}  # by what is left out; the table's own is kept for all its turns
    left_out = {f"without {name}={table[name]}": (name,) for name in known}
    tries = [
        (f"{BASELINE}, before", ()),
        *list(left_out.items())[:half],
        (f"{BASELINE}, between", ()),
        *list(left_out.items())[half:],
        *([("without any of the table", tuple(known))] if len(known) > 1 else []),
        (f"{BASELINE}, after", ()),
    ]
    for (what, names), reason in fitting(tries, options, 45.0 if options["model"] != "tiny" else 0.0):
        if reason:
            yield {"what": what, "skipped": reason}
            continue
        if names not in programs:
            kept = {name: value for name, value in table.items() if name not in names}
            with mock.patch.object(compiler, "OPTIONS", {options["platform"]: kept}):
                programs[names] = contenders.neojax_step(options)
        programs[names]()  # not timed, as the first round of those that were just compiled is not
        found = [one_round(programs[names]) for _ in range(ROUNDS)]
        if names:
            del programs[names]
            gc.collect()
        yield {"what": what, "tokens_per_second": statistics.median(found), "rounds": found}


def known_options(table: Mapping[str, Any]) -> Iterator[str]:
    """The options of the table that the compiler here takes."""
    from neojax.layout.mesh import single_device
    from neojax.training import compiler

    layout = single_device()
    with mock.patch.object(compiler, "OPTIONS", {layout.platform: dict(table)}):
        yield from compiler.compiler_options(layout)


def conclude(rows: list[Row]) -> list[Row]:
    """How far the baselines lie apart, and what leaving each option out does against their median."""
    found = measured(rows, "tokens_per_second")
    bases = [row["tokens_per_second"] for row in found if row["what"].startswith(BASELINE)]
    if not bases:
        return []
    middle = statistics.median(bases)
    drift = {"what": "drift of the baseline", "ratio": max(bases) / min(bases)}
    return [drift] + [
        {"what": f"{row['what']}, against the table", "ratio": row["tokens_per_second"] / middle}
        for row in found
        if not row["what"].startswith(BASELINE)
    ]
