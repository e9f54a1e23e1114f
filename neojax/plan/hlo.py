"""The collectives of a program that the TPU's compiler has optimised: what travels, how often, over which
chips, and when.

The compiler writes a reduce-scatter as an all-reduce in a fusion called all-reduce-scatter; a gather of small
arrays as a sum of arrays that are zero elsewhere; a collective that runs in steps beside other work once a
step, all with the number of one channel, in fusions called async_collective_fusion; and what crosses slices
as a pair of send and receive that the host carries. A loop's body stands in the text once, so its trips are
read from its condition.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
Array = tuple[str, tuple[int, ...]]  # type and shape
OPERATION = re.compile(rf"= (.+?) ({'|'.join(KINDS)}|send)(-start)?\(")
TILES = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # a shape, and the order that its dimensions are turned to
START = re.compile(r"\s*%async-collective-start.* calls=%([\w.\-]+)")
FUSED = ("fused_computation", "async_collective_fusion")
MADE = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = ")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    kind: of `KINDS`, or "transfer" for what crosses slices. arrays: whole, as every chip of a group has them
    after a gather or before a scatter; a transfer's are what one chip sends. groups: partition numbers, those
    of one slice in a program for several. times: how often a step runs it. beside: whether computation runs
    meanwhile. is_gather: whether it is a sum that stands for a gather. is_marked: whether the compiler once
    had it in two halves. rings: how many the compiler uses at once, 0 where it does not say.
    """

    kind: str
    arrays: tuple[Array, ...]
    groups: tuple[tuple[int, ...], ...]
    times: int = 1
    beside: bool = False
    is_gather: bool = False
    is_marked: bool = False
    rings: int = 0
    operation: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of its arrays, of one run."""
        return sum(map(size, self.arrays))


def size(array: Array) -> int:
    """Bytes of an array."""
    return BYTES[array[0]] * math.prod(array[1])


def arrays(kind: str) -> list[Array]:
    """The arrays of an HLO type, a tuple or not: their types and shapes."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", kind)
    return [(t, tuple(int(n) for n in dims.split(",") if n)) for t, dims in found if t in BYTES]


def collectives(hlo: str) -> list[Collective]:
    """Every collective of an optimised program, each once, with the times that a step runs it.

    One that runs in steps stands in the fusion that starts it, in those that do a part of it beside other
    work, and in the one that ends it. All have the number of one channel, which others (those of a
    `shard_map`) may share: so each that starts counts, and of steps without a start one for each channel.
    """
    bodies = computations(hlo)
    times = trips(bodies)
    partitions = int((re.search(r"num_partitions=(\d+)", hlo[:200_000]) or [0, 1])[1])
    makes = {match[1]: line for lines in bodies.values() for line in lines if (match := MADE.match(line))}
    starts = {called[1] for line in makes.values() if (called := START.match(line))}
    whole: list[Collective] = []
    started: set[str] = set()
    steps: dict[str, Collective] = {}
    for name, lines in bodies.items():
        for line in lines:
            if not (match := OPERATION.search(line)):
                continue
            own = replace(_read(line, match, name, partitions), times=times[name])
            if own.kind == "all-reduce":
                fills = _fills(line, makes, bodies)
                own = replace(own, is_gather=bool(fills) and fills[0])
                if len(fills) == len(own.arrays) and len({*fills}) > 1 and not name.startswith(FUSED):
                    # One sum of several arrays, some of which are gathers: as two.
                    rest = tuple(a for a, is_filled in zip(own.arrays, fills) if is_filled != fills[0])
                    whole.append(replace(own, arrays=rest, is_gather=not fills[0]))
                    own = replace(own, arrays=tuple(a for a, f in zip(own.arrays, fills) if f == fills[0]))
            channel = re.search(r"channel_id=(\d+)", line)
            # Both halves of a sum that crosses slices have the number of the whole, so the kind belongs to
            # the key.
            key = f"{channel[1]} {own.kind}" if channel else line
            if name in starts:
                whole.append(replace(own, beside=True))
                started.add(key)
            elif name.startswith(FUSED):
                beside = own.beside or (key in steps and steps[key].beside)
                steps[key] = replace(steps.get(key, own), beside=beside)
            else:
                whole.append(own)
    return whole + [own for key, own in steps.items() if key not in started]


def _read(line: str, match: re.Match, computation: str, partitions: int) -> Collective:
    kind, operation, start = match.groups()
    results = arrays(kind)
    if operation == "send":
        results = results[:1]
        operation = "transfer"
        if target := re.search(r'_xla_megascale_transfer_type="(\w+)"', line):
            return Collective("transfer", tuple(results), (), operation=target[1])
    if start and operation in ("all-gather", "collective-permute"):  # a type of (operands, results, ...)
        results = [max(results, key=size)]
    groups = replica_groups(line, partitions)
    if operation == "reduce-scatter":
        results = [(t, (*shape, len(groups[0]))) for t, shape in results]
    if "all-reduce-scatter" in computation:
        operation = "reduce-scatter"
    named = re.search(r'op_name="([^"]*)"', line)
    return Collective(
        operation,
        tuple(results),
        groups,
        beside=bool(start) or "async_co" in computation,
        is_marked="async_collective_name" in line,
        rings=_rings(line),
        operation=named[1] if named else "",
    )


def _fills(line: str, makes: dict[str, str], bodies: dict[str, list[str]]) -> list[bool]:
    """Of every operand of a sum whether it is a part written into zeros."""
    operands = re.search(r" all-reduce(?:-start)?\(([^)]*)\)", line)
    names = re.findall(r"%([\w.\-]+)", operands[1]) if operands else []

    def root(made: str) -> str:
        called = re.search(r" fusion\(.*calls=%([\w.\-]+)", made)
        lines = bodies[called[1]] if called else [made]
        return next((own for own in lines if own.lstrip().startswith("ROOT")), made)

    def fills(name: str) -> bool:
        made = makes.get(name, "")
        if part := re.search(r" get-tuple-element\(%([\w.\-]+)\), index=(\d+)", made):
            each = re.findall(r"%([\w.\-]+)", root(makes.get(part[1], "")).partition(" tuple(")[2])
            made = makes.get(each[int(part[2])], "") if int(part[2]) < len(each) else ""
        return " dynamic-update-slice(" in root(made)

    return [fills(name) for name in names]


def _rings(line: str) -> int:
    """The rings in both directions that the compiler's notes say a collective uses at once."""
    if colours := re.search(r"(\w+)\{colors:(\d+)", line):
        return max(1, int(colours[2]) // (2 if "UniDirection" in colours[1] else 1))
    return 1 if '"emitter":"1D' in line else 0


def computations(hlo: str) -> dict[str, list[str]]:
    """The lines of every computation by its name; that of the program itself is ENTRY."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = found.setdefault("ENTRY" if header[1] else header[2], [])
        else:
            lines.append(line)
    return found


def trips(bodies: dict[str, list[str]]) -> Counter[str]:
    """How often a step runs every computation; of a condition's branches, each once."""
    calls = {name: list(_calls(lines, bodies)) for name, lines in bodies.items()}
    times: Counter[str] = Counter()

    def enter(name: str, count: int) -> None:
        times[name] += count
        for called, each in calls.get(name, ()):
            enter(called, count * each)

    enter("ENTRY", 1)
    return times


def _calls(lines: list[str], bodies: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    for line in lines:
        if loop := re.search(r"condition=%([\w.\-]+), body=%([\w.\-]+)", line):
            yield loop[2], _bound(line, bodies[loop[1]], bodies)
            continue
        for called in re.findall(r"(?:calls|to_apply|called_computations)=\{?%([\w.\-]+)", line):
            yield called, 1
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            yield from ((name.strip(" %"), 1) for name in branches.split(","))


def _bound(loop: str, condition: list[str], bodies: dict[str, list[str]]) -> int:
    """The trips of a loop that counts from 0: as the compiler notes it, or the constant that its condition
    compares with, there or in a fusion. A condition that asks for more may end it earlier."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    called = [name for line in condition for name in re.findall(r"calls=%([\w.\-]+)", line)]
    lines = [*condition, *(line for name in called for line in bodies.get(name, ()))]
    constants = [int(n) for line in lines for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)]
    if len(constants) != 1:
        raise ValueError(f"the trips of a loop cannot be read from its condition: {condition}")
    return constants[0]


def replica_groups(line: str, partitions: int) -> tuple[tuple[int, ...], ...]:
    """The groups of partitions that a collective joins, in any of the three forms in which they are
    written."""
    if written := re.search(r"replica_groups=\{\{([\d,{} ]*)\}\}", line):
        groups = written[1].split("},{")
        return tuple(tuple(int(n) for n in group.split(",")) for group in groups)
    if tiled := re.search(rf"replica_groups=\[([\d,]+)\]<={TILES}", line):
        shape = [int(n) for n in tiled[1].split(",")]
        return tuple(map(tuple, _numbers(tiled[2], tiled[3]).reshape(shape).tolist()))
    if meshed := re.search(
        rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({TILES}\))? \{{([^}}]*)\}}", line
    ):
        axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", meshed[1])}
        used = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", meshed[4])
        order = _numbers(meshed[2] or str(math.prod(axes.values())), meshed[3])
        return _mesh_groups(axes, used, order)
    if "replica_groups={}" in line:
        return (tuple(range(partitions)),)
    if pairs := re.search(r"source_target_pairs=\{\{([\d,{} ]*)\}\}", line):
        return tuple(tuple(int(n) for n in pair.split(",")) for pair in pairs[1].split("},{"))
    raise ValueError(f"replica groups cannot be read: {line[:500]}")


def _numbers(shape: str, turned: str | None) -> np.ndarray:
    """The numbers from 0 on in an array of `shape`, with its dimensions `turned`."""
    sizes = [int(n) for n in shape.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose([int(n) for n in turned.split(",")]) if turned else numbers


def _mesh_groups(
    axes: dict[str, int], used: list[tuple[str, str, str]], order: np.ndarray
) -> tuple[tuple[int, ...], ...]:
    sizes, kept = [], []  # every axis in the parts that are used and not
    for name, n in axes.items():
        parts = [(int(before), int(part)) for axis, before, part in used if axis == name and part]
        if not parts:
            sizes.append(n)
            kept.append(name in [axis for axis, _, part in used if not part])
            continue
        done = 1
        for before, part in sorted(parts):
            if before > done:
                sizes.append(before // done)
                kept.append(False)
            sizes.append(part)
            kept.append(True)
            done = before * part
        if done < n:
            sizes.append(n // done)
            kept.append(False)
    numbers = order.reshape(sizes)
    inside = [i for i, own in enumerate(kept) if own]
    outside = [i for i, own in enumerate(kept) if not own]
    numbers = numbers.transpose(outside + inside)
    return tuple(map(tuple, numbers.reshape(-1, math.prod(sizes[i] for i in inside)).tolist()))
