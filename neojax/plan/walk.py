"""The operations of a traced step, one by one: what one device computes, moves and holds at each."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from neojax.plan.fusion import (
    FLAT,
    is_piece,
    is_rounded,
    laid_for_kernels,
    runs_with,
    widened,
)
from neojax.plan.graph import Graph, Operation
from neojax.plan.lives import Frame, Value
from neojax.plan.parts import Parts
from neojax.plan.work import Held, Product, Transfer

REDUCTIONS = (
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "gather",
)  # fmt: skip
SUMS = ("psum", "psum2", "psum_invariant", "pmax", "pmin")
COLLECTIVES = {
    "all_gather": "gather",
    "all_gather_invariant": "gather",
    "reduce_scatter": "sum",
    "psum_scatter": "sum",
    "all_to_all": "all-to-all",
    "ppermute": "permute",
}
OPAQUE = (
    "dot_general", "pallas_call", "scatter", "scatter-add", "sort", "top_k", "conv_general_dilated", "cumsum",
    "ragged_dot",
)  # fmt: skip
# From compiled steps, see benchmarks/results/README.md: what a loop holds in which something is computed
# again, over what the lives of its values tell in the order in which it is written.
AGAIN = 1.15


class Walker(Parts):
    """Goes through a program's operations in their order, and counts what one device does and holds."""

    def __init__(self, sizes: dict[str, int], tiled: bool):
        super().__init__(sizes, tiled)
        self.products: list[Product] = []
        self.transfers: list[Transfer] = []
        self.traffic = 0.0
        self.operations = 0

    def frame(self, jaxpr: Any, times: int, looped: bool, aliased: bool = False) -> tuple[int, Frame]:
        """(the most bytes held beside the inputs, the frame) of a program that a step runs `times` times.
        aliased: the outputs take the inputs' memory."""
        graph = Graph(jaxpr)
        frame = Frame(graph)
        as_kernels = laid_for_kernels(graph) if self.tiled else frozenset()
        for number in graph.inputs:
            frame.values[number] = Value(0, roots=frozenset((number,)))
        for at, one in enumerate(graph.operations):
            for number in one.ins:
                if number not in frame.values:  # a literal, or a constant within a call
                    frame.values[number] = Value(0, at, virtual=True)
            for number, value in zip(one.outs, self._operation(one, frame, at, times, looped)):
                if not value.virtual:
                    value.roots = frozenset((number,))
                value.made = max(at, value.made, *(frame.ready(n) for n in one.ins), 0)
                frame.values[number] = value
            is_kernel = one.name == "pallas_call"
            for number, var in zip(one.outs, one.eqn.outvars if one.eqn is not None else ()):
                if is_kernel or number in as_kernels:
                    frame.values[number].pad = self.pad(var.aval)
                frame.values[number].aval = one.result or var.aval
            for number, var in zip(one.ins, one.eqn.invars if is_kernel else ()):
                if frame.values[number].bytes:
                    frame.values[number].pad = self.pad(var.aval)
        end = len(graph.operations)
        for number in graph.outputs:
            if number in frame.values:
                (self._touch if aliased else self._store)(frame, number, end, times)
        return frame.fullest()[0], frame

    def live(self, frame: Frame, inside: bool = True) -> Iterator[Held]:
        """What is in memory when a program holds most, and inside the loop that it is then in."""
        at = frame.fullest()[1]
        for value in frame.each():
            size = value.bytes + value.pad
            if not value.virtual and size > 0 and value.made <= at <= max(value.used, value.made):
                shape = () if value.aval is None else tuple(self.local(value.aval))
                yield Held(size, shape, str(getattr(value.aval, "dtype", "")), value.what)
        if inside and at in frame.inside:
            yield from self.live(frame.inside[at])

    def _touch(self, frame: Frame, number: int, at: int, times: int = 0) -> int:
        """Says that a value, or what it is computed from, is read at an operation. Returns the bytes read."""
        read = 0
        for root in frame.values[number].roots:
            value = frame.values[root]
            value.used = max(value.used, at)
            read += value.bytes
        return read

    def _store(self, frame: Frame, number: int, at: int, times: int) -> None:
        """Says that a value is read as a whole, so that it is stored."""
        value = frame.values[number]
        if value.virtual and value.bytes:
            late = any(root.made > at and root.pad < 0 for root in frame.roots(number))
            if late or not value.roots:  # written where what it is added to, or begins with, will be
                value.pad = -value.bytes
            for root in frame.roots(number):
                root.used = max(root.used, value.made)
                frame.inner[value.made] += root.widened
                root.widened = 0
                if value.wide and value.bytes == root.bytes:  # the same, turned
                    value.pad = max(value.pad, root.pad)
            self._written(frame, number, times)
            value.virtual, value.roots = False, frozenset((number,))
        self._touch(frame, number, at)

    def _written(self, frame: Frame, number: int, times: int) -> None:
        """Says that a value is computed from what is stored, once."""
        value = frame.values[number]
        if value.virtual and value.bytes and not value.is_counted:
            self.traffic += times * (value.bytes + sum(root.bytes for root in frame.roots(number)))
            self.operations += times
            value.is_counted = True

    def _operation(self, one: Operation, frame: Frame, at: int, times: int, looped: bool) -> Sequence[Value]:
        """Accounts for an operation, and gives its results."""
        name, eqn, ins = one.name, one.eqn, one.ins
        if name == "again":
            value = frame.values[ins[0]]
            return [Value(value.bytes, virtual=True, roots=value.roots, what=value.what, aval=value.aval)]
        avals = [v.aval for v in eqn.outvars]
        if one.result is not None:
            return [self._rows(one, frame, at, times, looped)]
        if name == "reshard":
            return [self._reshard(eqn, ins[0], frame, at, times, looped)]
        if name in REDUCTIONS:
            self.operations += times
            self.traffic += times * sum(self._touch(frame, number, at) for number in ins)
            results = [Value(self.bytes(a), what=name) for a in avals]
            dims = eqn.params.get("axes", ()) if name != "gather" else ()
            split = self.spec(eqn.invars[0].aval)
            axes = tuple(a for d in dims for a in split[d])
            results[0].summed = self._transfer("sum", axes, self.bytes(avals[0]), times, avals[0], looped)
            return results
        if name in SUMS or name in COLLECTIVES or name in OPAQUE or name in ("scan", "while", "cond"):
            is_product = self.tiled and name == "dot_general"
            late = runs_with(frame, one, at, SUMS) if is_product and not looped else at
            for number in ins:
                if is_product and is_rounded(frame, number):
                    self._written(frame, number, times)
                    self._touch(frame, number, late)
                else:
                    self._store(frame, number, late, times)
        if name in ("scan", "while", "cond"):
            return self._loop(eqn, name, ins, frame, at, times)
        if name in SUMS:
            axes = tuple(a for a in eqn.params.get("axes", eqn.params.get("axis_name")) if isinstance(a, str))
            summed = [self._transfer("sum", axes, self.bytes(a), times, a, looped) for a in avals]
            results = [Value(self.bytes(a), what=name, summed=kept) for a, kept in zip(avals, summed)]
            for value, number in zip(results, ins):
                before = frame.values[number]
                value.pad = -value.bytes if before.made > at and before.pad < 0 else 0
            return results
        if name == "dot_general":
            made = self._product(eqn, times, looped)
            if self.tiled:
                made.widened = widened(frame.graph, one, self.bytes)
            if late > at:  # written where what it is added to lies
                made.made, made.pad = late, -made.bytes
            return [made]
        if name in COLLECTIVES or name in OPAQUE:
            self._collective(eqn, name, times, looped)
            if name == "pallas_call":
                self._kernel(eqn, times)
            self.operations += times
            self.traffic += times * (
                sum(frame.values[n].bytes for n in set(ins)) + sum(map(self.bytes, avals))
            )
            return [Value(self.bytes(a), what=name) for a in avals]
        roots = frozenset().union(*(frame.values[n].roots for n in ins)) if ins else frozenset()
        results = [
            Value(self.bytes(a), virtual=True, roots=roots, what=name, wide=self.pad(a)) for a in avals
        ]
        of = [frame.values[n] for n in roots]
        if name == "slice" and all(v.what == "pallas_call" and v.bytes > results[0].bytes for v in of):
            self.traffic += times * self._touch(frame, ins[0], at)
            results[0].virtual = False  # the lanes that a kernel has filled with one number
        if name == "mul" and any(is_piece(frame, n) for n in ins):  # of heads that are rotated
            for number in ins:
                self._touch(frame, number, at)
            results[0].virtual, results[0].pad = False, results[0].wide
        pending = [kept for n in ins if (kept := frame.values[n].summed) is not None]
        if any(frame.graph.readers[n] > 1 for n in ins if frame.values[n].summed is not None):
            pending = []
        if name in ("add", "add_any"):
            joined = self._joined(*pending) if len(pending) == 2 else None
            pending = [] if joined is None else [joined]
        if name in FLAT and pending:
            results[0].summed = pending[0]
            if name == "reshape":
                self.transfers[pending[0]] = replace(self.transfers[pending[0]], turned=True)
        return results

    def _rows(self, one: Operation, frame: Frame, at: int, times: int, looped: bool) -> Value:
        """Rows of a table that are looked up."""
        size = self.bytes(one.result)
        self.operations += times
        self.traffic += 2 * times * size
        for number in one.ins:
            self._touch(frame, number, at)
        if one.whole is not None:
            was, now = (self.spec(v.aval) for v in (one.whole.invars[0], one.whole.outvars[0]))
            split = [a for x, y in zip(was[:1], now[:1]) for a in x if a not in y]
            self._transfer("sum", split, size, times, one.result, looped)
        return Value(size, what="gather")

    def _collective(self, eqn: Any, name: str, times: int, looped: bool) -> None:
        """A collective that is written as such."""
        if name not in COLLECTIVES:
            return
        axes = eqn.params.get("axis_name", ())
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        aval = eqn.outvars[0].aval
        kind = COLLECTIVES[name]
        whole = self.bytes(aval) * (self.parts(axes) if kind in ("sum", "all-to-all") else 1)
        made = self._transfer(kind, axes, whole, times, aval, looped)
        if kind == "sum" and made is not None:
            self._cut(made, axes)

    def _transfer(
        self, kind: str, axes: Sequence[str], bytes: int, times: int, aval: Any, looped: bool
    ) -> int | None:
        axes = tuple(sorted(a for a in axes if self.sizes[a] > 1))
        if not axes or not bytes:
            return None
        self.transfers.append(Transfer(kind, axes, bytes, times, str(aval.dtype), looped))
        return len(self.transfers) - 1

    def _joined(self, first: int, second: int) -> int | None:
        """Two sums whose results are added are one sum of what was added."""
        a, b = self.transfers[first], self.transfers[second]
        if first == second or (a.kind, a.axes, a.bytes, a.times) != (b.kind, b.axes, b.bytes, b.times):
            return None
        self.transfers[second] = replace(b, times=0)
        return first

    def _reshard(self, eqn: Any, number: int, frame: Frame, at: int, times: int, looped: bool) -> Value:
        before, after = eqn.invars[0].aval, eqn.outvars[0].aval
        was, now = self.spec(before), self.spec(after)
        lost = [a for x, y in zip(was, now) for a in x if a not in y]
        won = [a for x, y in zip(was, now) for a in y if a not in x]
        value = frame.values[number]
        if not lost:
            cut = None if value.summed is None else self._cut(value.summed, won)
            return Value(self.bytes(after), virtual=True, roots=value.roots, what="reshard", summed=cut)
        self._store(frame, number, at, times)
        size = self.bytes(after)
        moved = tuple(a for a in lost if a in won)
        self._transfer("gather", [a for a in lost if a not in won], size, times, after, looped)
        self._transfer("all-to-all", moved, self.parts(moved) * size, times, after, looped)
        self.operations += times
        self.traffic += times * (self.bytes(before) + size)
        return Value(size, what="gather")

    def _cut(self, at: int, axes: Sequence[str]) -> int | None:
        """Says that each device keeps a part along `axes` of what it has summed."""
        one = self.transfers[at]
        inside = tuple(a for a in one.axes if a in axes)
        self.transfers[at] = replace(one, cut=tuple(sorted({*one.cut, *inside})))
        return at

    def _product(self, eqn: Any, times: int, looped: bool) -> Value:
        (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
        left, right = (v.aval for v in eqn.invars[:2])
        out = eqn.outvars[0].aval
        (a, split_left), (b, _), c = (
            self._met(eqn, times, looped),
            self._met(eqn, times, looped, 1),
            self.local(out),
        )
        k = math.prod(a[d] for d in left_sum)
        batch = math.prod(a[d] for d in left_batch)
        m = math.prod(n for d, n in enumerate(a) if d not in (*left_sum, *left_batch))
        n = math.prod(s for d, s in enumerate(b) if d not in (*right_sum, *right_batch))
        axes = [x for d in left_sum for x in split_left[d]]
        split = {x for own in self.spec(out) for x in own}
        scattered = [
            x for x in axes if x in split
        ]  # each device keeps a part of the sum, but makes all of it
        size = self.bytes(out)
        moved = self.bytes(left) + self.bytes(right) + size * self.parts(scattered)
        flops = 2.0 * math.prod(c) * k * self.parts(scattered)
        self.products.append(Product(batch, m, n, k, times, moved, flops=flops))
        self.operations += times
        summed = self._transfer("sum", axes, size * self.parts(scattered), times, out, looped)
        if summed is not None and scattered:
            self._cut(summed, scattered)
        return Value(size, what="product", summed=summed)

    def _met(
        self, eqn: Any, times: int, looped: bool, side: int = 0
    ) -> tuple[list[int], list[tuple[str, ...]]]:
        """(the shape of one device's part, the axes that split it) of an operand of a product, once it is
        gathered over the axes that split the other operand or the result otherwise."""
        summed, batched = eqn.params["dimension_numbers"]
        aval, other, out = eqn.invars[side].aval, eqn.invars[1 - side].aval, eqn.outvars[0].aval
        own, its, result = self.spec(aval), self.spec(other), self.spec(out)
        ranks = [len(v.aval.shape) - len(summed[i]) - len(batched[i]) for i, v in enumerate(eqn.invars[:2])]
        free = [d for d in range(len(own)) if d not in (*summed[side], *batched[side])]
        start = len(batched[0]) + (ranks[0] if side else 0)
        like = {d: its[e] for d, e in zip(summed[side], summed[1 - side])}
        like |= {d: result[at] for at, d in enumerate(batched[side])}
        like |= {d: result[start + at] for at, d in enumerate(free)}
        lost = [x for d, split in enumerate(own) for x in split if x not in like[d]]
        kept = [tuple(x for x in split if x not in lost) for split in own]
        size = self.bytes(aval) * self.parts(lost)
        self._transfer("gather", lost, size, times, aval, looped)
        return [n // self.parts(split) for n, split in zip(aval.shape, kept)], kept

    def _kernel(self, eqn: Any, times: int) -> None:
        """A kernel of attention: two products forward, which are made again backward with two more each for
        queries and for keys and values."""
        name = str(eqn.params.get("name") or eqn.params.get("name_and_src_info") or "")
        arrays = [v.aval for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
        wide = [one.shape for one in arrays if len(one.shape) >= 3 and one.shape[-1] >= 16]
        if len(wide) < 2:
            return
        q, keys = wide[:2]
        products = 2 if "fwd" in name else 5 if "dkv" in name else 3
        self.products.append(
            Product(math.prod(q[:-2]), q[-2], keys[-2], q[-1], times, 0, name, float(products))
        )

    def _loop(
        self, eqn: Any, name: str, ins: Sequence[int], frame: Frame, at: int, times: int
    ) -> list[Value]:
        constants, carried = _carry(eqn) if name == "scan" else (0, 0)
        if name == "scan":
            inside, repeats = [eqn.params["jaxpr"]], eqn.params["length"]
        else:
            inside, repeats = (
                list(eqn.params["branches"] if name == "cond" else [eqn.params["body_jaxpr"]]),
                1,
            )
        if name == "scan":
            for number in ins[constants:][:carried]:
                value = frame.values[number]
                if frame.graph.readers[number] == 1:  # what is carried takes its place
                    value.used = at - 1
        in_place = name == "cond"  # of two results, one is what it was
        for body in inside:
            held, own = self.frame(body.jaxpr, times * repeats, True, in_place)
            if name == "scan" and own.is_again():
                held = round(AGAIN * held)
            if held > frame.inner[at]:
                frame.inner[at], frame.inside[at] = held, own
        if in_place:
            roots = frozenset().union(*(frame.values[n].roots for n in ins))
            return [Value(self.bytes(v.aval), virtual=True, roots=roots, what=name) for v in eqn.outvars]
        if name == "while":
            return [Value(self.bytes(v.aval), what="carried") for v in eqn.outvars]
        kept: dict[int, Value] = {}  # the same twice is kept once
        for var, number in zip(eqn.outvars[carried:], own.graph.outputs[carried:]):
            pad = own.values[number].pad if number in own.values else 0
            value = Value(self.bytes(var.aval), what="kept", pad=max(0, pad) * repeats)
            kept.setdefault(number, value)
        held_on = [Value(self.bytes(v.aval), what="carried") for v in eqn.outvars[:carried]]
        return held_on + [kept[number] for number in own.graph.outputs[carried:]]


def _carry(scan: Any) -> tuple[int, int]:
    """How many inputs of a scan are the same in every turn, and how many are carried; JAX 0.12 has them as
    trees."""
    params = scan.params
    if "ft_in" not in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].update(scan.invars).unpack()
    return len(list(constants)), len(list(carried))
