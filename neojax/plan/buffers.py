"""What the memory of one device holds when it holds most, buffer by buffer, as the compiler has assigned it.

Read from what XLA writes of a program where it is told to (`xla_dump_to`): the optimised program in the order
in which it runs, where each value lies, and from when to when it is needed. The compilers of TPUs, GPUs and
CPUs all write it, and that of TPUs also of a program that does not fit.

A buffer is of one of `KINDS`. Arguments say what they are. Of all else the program knows the pass in which it
is computed, not its meaning, so that the rest is read from types: a gradient has the shape of a parameter
(its own part, or the whole before it is scattered); what the forward pass makes and the backward pass still
reads is an activation that is kept; what is left (recomputed activations, gathered parameters, working space)
is temporary.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("parameters", "optimizer", "batch", "gradients", "activations kept", "temporaries")
LARGEST = 5
VALUE = re.compile(
    r" value: <\d+ (\S+?)(?:\{([\d,]*)\})?(?: \(phi\))? @(\d+)> \(size=(\d+),offset=(\d+)\): (\S+)"
)
RANGE = re.compile(r"    (\S+?)\{([\d,]*)\}:(\d+)-(\d+)$")
PLACE = re.compile(r"    (\d+):(\S+)$")
MADE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)")
OPERATION = re.compile(r"[\])}] ([\w\-]+)\(%?([\w.\-]*)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
BACKWARD, FORWARD, AGAIN = "transpose(", "jvp(", "rematted_computation"
EARLY = ("constant", "iota", "broadcast", "parameter", "bitcast", "get-tuple-element", "tuple")
COPIES = ("all-gather", "copy", "convert", "bitcast", "reshape", "transpose", "dynamic-slice")


@dataclass(frozen=True)
class Tensor:
    """A parameter: its dimensions, its shape in all, and that of the part which a device stores."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    part: tuple[int, ...]


@dataclass(frozen=True)
class Buffer:
    """A place in memory when it is fullest. kind: of `KINDS`; shape: as the compiler writes it, such as
    bf16[24,2,2048,2048]; holds: what it holds, in words."""

    bytes: int
    kind: str
    shape: str
    holds: str


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment at which most are needed. kinds: by kind, all of `KINDS`, which sum
    to `needed` but for `unused`, gaps that the compiler leaves between buffers. gradients, kept: the most
    that there are of these at any moment."""

    needed: int
    arguments: int
    kinds: Mapping[str, int]
    unused: int
    gradients: int
    kept: int
    largest: tuple[Buffer, ...]


@dataclass
class _Buffer:
    """Values that take the same place one after the other; shape: that of the first."""

    offset: int
    size: int
    first: int
    last: int
    shape: str
    values: list[str]
    kind: str = "temporaries"
    holds: str = ""


def read(
    folder: Path, tensors: Mapping[str, Tensor], sizes: Sequence[tuple[str, int]], layers: Sequence[int]
) -> Memory | None:
    """The memory of the one large program of which the compiler wrote to `folder`; None where it wrote
    nothing of its buffers.

    sizes: (dimension, its size on one device) in the order in which activations have them, batch first;
    layers: repetitions of the stack, which activations that are kept for a loop begin with.
    """
    assigned = _largest(folder.glob("*-buffer-assignment.txt"))
    ranges = _largest(folder.glob("*-live-range.txt"))
    programs = [p for p in folder.glob("*after_optimizations*.txt") if "buffer-assignment" not in p.name]
    program = _largest(p for p in programs if "live-range" not in p.name and "usage" not in p.name)
    if not (assigned and ranges and program):
        return None
    lines = {m[1]: m[2] for line in _lines(program) if (m := MADE.match(line))}
    reader = Reader(lines, tensors, dict(sizes), layers)
    allocations = dict(_allocations(_lines(assigned)))
    order, needed = _times(_lines(ranges))
    backward = _turn(
        [(at, is_backward) for at, n in order if (is_backward := reader.is_backward(n)) is not None]
    )
    arguments = [a for a in allocations.values() if a.parameter is not None]
    space = [a for a in allocations.values() if a.is_space]
    buffers = [b for a in space for b in _buffers(a, needed)]
    for buffer in buffers:
        buffer.kind, buffer.holds = reader.kind(buffer, backward)
    at, held = _fullest(buffers)
    kinds = Counter(dict.fromkeys(KINDS, 0))
    shown = []
    for argument in arguments:
        name, shape = reader.given(argument.values)
        kind, holds = reader.argument(name)
        kinds[kind] += argument.size
        shown.append(Buffer(argument.size, kind, _plain(shape), holds))
    live = [b for b in buffers if b.first <= at <= b.last]
    for b in live:
        kinds[b.kind] += b.size
        shown.append(Buffer(b.size, b.kind, _plain(b.shape), b.holds))
    total = sum(a.size for a in allocations.values())
    given = sum(a.size for a in arguments)
    kinds["temporaries"] += total - given - sum(a.size for a in space)  # constants, outputs that are new
    return Memory(
        needed=total,
        arguments=given,
        kinds=dict(kinds),
        unused=max(0, sum(a.size for a in space) - held),
        gradients=_most(buffers, "gradients"),
        kept=_most(buffers, "activations kept"),
        largest=tuple(sorted(shown, key=lambda b: -b.bytes)[:LARGEST]),
    )


class _Allocation:
    """A piece of memory. parameter: the number of the argument that it is; is_space: whether values take
    turns in it; values: (instruction, index, bytes, offset, type) of each."""

    def __init__(self, size: int, what: str):
        self.size = size
        self.parameter = int(m[1]) if (m := re.search(r"\bparameter (\d+)", what)) else None
        self.is_space = "temp" in what
        self.values: list[tuple[str, str, int, int, str]] = []


def _allocations(lines: Iterable[str]) -> Iterator[tuple[int, _Allocation]]:
    """Those of a device's main memory, by number; small ones of a kernel's own threads are left out."""
    current = None
    for line in lines:
        if found := re.match(r"allocation (\d+): size (\d+), ?(.*)", line):
            what = found[3]
            current = _Allocation(int(found[2]), what)
            if not re.search(r"\bcolor [1-9]", what) and "thread-local" not in what:
                yield int(found[1]), current
        elif current is not None and (value := VALUE.match(line)) and value[3] == "0":
            name, index, _, size, offset, shape = value.groups()
            current.values.append((name, index or "", int(size), int(offset), shape))


def _times(lines: Iterable[str]) -> tuple[list[tuple[int, str]], dict[tuple[str, str], tuple[int, int]]]:
    """The order of all instructions, and from when to when each value is needed."""
    order, needed = [], {}
    for line in lines:
        if found := RANGE.match(line):
            needed[found[1], found[2]] = int(found[3]), int(found[4])
        elif place := PLACE.match(line):
            order.append((int(place[1]), place[2]))
    return order, needed


def _buffers(space: _Allocation, needed: Mapping[tuple[str, str], tuple[int, int]]) -> Iterator[_Buffer]:
    """The values of one space, those of one place that follow each other without a gap as one buffer."""
    timed = [(*needed[v[0], v[1]], v) for v in space.values if (v[0], v[1]) in needed]
    open_at: dict[int, _Buffer] = {}
    for first, last, (name, _, size, offset, shape) in sorted(timed, key=lambda t: t[:2]):
        own = open_at.get(offset)
        if own and own.size == size and first <= own.last:
            own.last = max(own.last, last)
            own.values.append(name)
            continue
        if own:
            yield own
        open_at[offset] = _Buffer(offset, size, first, last, shape, [name])
    yield from open_at.values()


def _fullest(buffers: Sequence[_Buffer]) -> tuple[int, int]:
    """(the time at which most is held, the bytes held then)."""
    return max(_held(buffers), key=lambda pair: pair[1], default=(0, 0))


def _turn(passes: Sequence[tuple[int, bool]]) -> int | None:
    """The time at which the backward pass begins: that with the fewest of its instructions before it and of
    the forward pass's after it, since some are moved. passes: (time, whether it is of the backward pass)."""
    late = sum(not is_backward for _, is_backward in passes)
    best: tuple[int, int | None] = (late + 1, None)
    misplaced = late
    for at, is_backward in sorted(passes):
        if is_backward and misplaced < best[0]:
            best = misplaced, at
        misplaced += 1 if is_backward else -1
    return best[1]


def _most(buffers: Sequence[_Buffer], kind: str) -> int:
    return _fullest([b for b in buffers if b.kind == kind])[1]


def _held(buffers: Sequence[_Buffer]) -> Iterator[tuple[int, int]]:
    change: Counter[int] = Counter()
    for b in buffers:
        change[b.first] += b.size
        change[b.last + 1] -= b.size
    held = 0
    for at in sorted(change):
        held += change[at]
        yield at, held


class Reader:
    """Says of a value what it is, from the line that makes it."""

    def __init__(
        self,
        lines: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        layers: Sequence[int],
    ):
        self.lines, self.tensors, self.sizes, self.layers = lines, tensors, sizes, layers

    def operation(self, name: str) -> str:
        """The path of what was traced: jit(train_step)/jvp()/while/body/..."""
        found = re.search(r'op_name="([^"]*)"', self.lines.get(name, ""))
        return found[1] if found else ""

    def is_backward(self, name: str) -> bool | None:
        """Whether an instruction computes a part of the backward pass; None where it is of neither pass."""
        path, made = self.operation(name), OPERATION.search(self.lines.get(name, ""))
        if FORWARD not in path or not made or made[1] in EARLY:
            return None
        return BACKWARD in path

    def given(self, values: Sequence[tuple[str, str, int, int, str]]) -> tuple[str, str]:
        """(the name, the type) of the argument among the values that take its place one after the other."""
        own = (v for v in values if " parameter(" in self.lines.get(v[0], ""))
        found = next(own, values[0] if values else ("", "", 0, 0, ""))
        return found[0], found[4]

    def argument(self, name: str) -> tuple[str, str]:
        """(the kind of an argument, what it is)."""
        return self.given_as(self.operation(name).replace("\\'", "'"))

    def given_as(self, path: str) -> tuple[str, str]:
        """(the kind of an argument, what it is) by its path, such as state.trained['wte']."""
        keys = re.findall(r"\['([^']*)'\]", path)
        what = keys[-1] if keys else path.rpartition(".")[2]
        if ".opt_state" in path:
            field = re.search(r"\.(\w+)(?:\[[^.]*)?$", path)
            return "optimizer", f"optimizer state {field[1] if field else ''} of {what}"
        if path.startswith("state"):
            return "parameters", f"parameter {what}"
        if cache := re.search(r"caches\[(\d+)\]\[(\d)\]", path):
            return "batch", f"{('keys', 'values')[int(cache[2])]} of layer {cache[1]} in the cache"
        return "batch", f"batch: {what}"

    def kind(self, buffer: _Buffer, backward: int | None) -> tuple[str, str]:
        """(the kind of a buffer that is no argument, what it holds)."""
        array = ARRAY.match(buffer.shape)
        if array is None:
            return "temporaries", "a tuple"
        dtype = array[1]
        shape = tuple(int(n) for n in array[2].split(",") if n)
        paths = [path for name in buffer.values if (path := self.operation(name))]
        alike = self.like(shape)
        forward = any(FORWARD in p and BACKWARD not in p for p in paths)
        if alike and any(map(self.is_copy, buffer.values)):
            return "temporaries", f"parameter {named_or(alike)}, gathered or in another layout"
        later = any(BACKWARD in p or FORWARD not in p for p in paths)
        if alike and dtype == "f32" and (later or self.is_table(alike)):
            return "gradients", f"gradient of {named_or(alike)}"
        what = " ".join(self.named(shape)) or "scalar"
        if forward and backward is not None and buffer.first < backward <= buffer.last:
            return "activations kept", f"kept for the backward pass: {what}"
        path = paths[0] if paths else ""
        phase = "optimizer" if path.startswith("jit(train_step)/") else "working space"
        if BACKWARD in path:
            phase = "backward, recomputed" if AGAIN in path else "backward"
        elif FORWARD in path:
            phase = "forward"
        last = path.rpartition("/")[2]
        return "temporaries", f"{phase}: {what}" + (f" ({last})" if last else "")

    def like(self, shape: tuple[int, ...]) -> list[str]:
        """The parameters that have this shape, in all, in one layer, or in a device's part of it."""
        own = [n for n in shape if n > 1]
        if math.prod(own) < 2**10 and len(own) < 2:
            return []
        found = []
        for name, tensor in self.tensors.items():
            stacked = "layers" in tensor.dims
            forms = [tensor.shape, tensor.part]
            if stacked:
                at = tensor.dims.index("layers")
                forms += [(*s[:at], *s[at + 1 :]) for s in (tensor.shape, tensor.part)]
            if any([n for n in form if n > 1] == own for form in forms):
                found.append(name)
        return found

    def is_table(self, names: Sequence[str]) -> bool:
        """Whether it is the table of tokens, whose gradient the loss computes in the forward pass."""
        return any("vocab" in self.tensors[name].dims for name in names)

    def is_copy(self, name: str) -> bool:
        """Whether a value is a parameter that was gathered, cast or laid out otherwise."""
        line = self.lines.get(name, "")
        made = OPERATION.search(line)
        if not made:
            return False
        if made[1].startswith("all-gather") or "all-gather" in name:
            return True
        copied = made[1] in COPIES or (
            made[1] == "fusion" and name.startswith(("copy", "convert", "bitcast"))
        )
        return copied and " parameter(" in self.lines.get(made[2], "")

    def named(self, shape: tuple[int, ...]) -> list[str]:
        """The dimensions that an activation of this shape is likely to have."""
        left = [(d, n) for d, n in self.sizes.items() if n > 1]
        named, rest = [], [n for n in shape if n > 1]
        batch = self.sizes["batch"]
        if len(rest) > 1 and rest[0] in self.layers and (rest[0] != batch or rest[1] == batch):
            named, rest = ["layers"], rest[1:]
        for n in rest:
            at = next((i for i, (_, size) in enumerate(left) if size == n), None)
            if n == self.sizes["sequence"] and {"heads", "sequence"} <= set(named):
                named.append("memory_length")
            elif at is not None:
                named.append(left.pop(at)[0])
            elif left and left[0][0] == "batch" and left[0][1] * self.sizes["sequence"] == n:
                named.append("batch*sequence")
            else:
                named.append(str(n))
        return named


def named_or(names: Sequence[str]) -> str:
    """A name, or that it is one of several."""
    return names[0] if len(names) == 1 else f"{names[0]} or one of {len(names) - 1} like it"


def _plain(shape: str) -> str:
    """A type without its layout."""
    return shape.partition("{")[0].strip("(,")


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from file


def _largest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda p: p.stat().st_size, default=None)
