"""What one device does and holds in a training step, counted from its traced program: products, memory's
traffic, collectives, and the memory at its fullest.

Nothing is compiled: the counts are those of the program as it is written, and a model of what a compiler
makes of it. Products and collectives are exact but for what a compiler drops or joins. Of memory it is
assumed that what is computed element by element is never stored unless a product, a kernel or a loop reads
it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from neojax.config import ModelConfig
from neojax.models.flops import visible_keys
from neojax.plan.graph import Graph, Operation
from neojax.plan.trace import Traced
from neojax.plan.work import Held, Memory, Product, Transfer, Work

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
# What a sum may pass through on its way to being cut or joined.
FLAT = (
    "reshape", "convert_element_type", "transpose", "squeeze", "broadcast_in_dim", "pad", "mul", "div", "add",
    "add_any", "slice",
)  # fmt: skip


# From compiled steps, see benchmarks/results/README.md: what a loop over layers holds, over what the lives of
# its values tell, where whole blocks are computed again; and which part of the arrays of heads is padded.
AGAIN = 1.12
PADDED = 0.5
LANES, SUBLANES = 128, 8  # of the registers of a TPU: arrays are padded to them


@dataclass
class _Value:
    """An array of a frame: `virtual` while nothing needs it stored; `roots` are then the stored ones that it
    is computed from. summed: the number of the transfer that it is the sum of, while it may yet be cut. pad:
    bytes that it takes beside its own, less than none where it lies in another's place."""

    bytes: int
    made: int = 0
    used: int = -1
    virtual: bool = False
    roots: frozenset[int] = frozenset()
    what: str = ""
    summed: int | None = None
    pad: int = 0
    aval: Any = None


@dataclass
class _Frame:
    """The values of a loop's body, or of the whole program, and the bytes that each operation needs within;
    inside: of loops, their bodies."""

    values: dict[int, _Value] = field(default_factory=dict)
    inner: list[int] = field(default_factory=list)
    inside: dict[int, "_Frame"] = field(default_factory=dict)


class _Walker:
    def __init__(self, sizes: dict[str, int], tiled: bool, again: bool):
        self.sizes = sizes
        self.tiled = tiled
        self.again = again
        self.products: list[Product] = []
        self.transfers: list[Transfer] = []
        self.traffic = 0.0
        self.operations = 0
        self.readers: Counter[int] = Counter()

    def parts(self, axes: Iterable[str]) -> int:
        return math.prod(self.sizes[a] for a in axes)

    def spec(self, aval: Any) -> list[tuple[str, ...]]:
        """The axes that split every dimension of an array's type."""
        sharding = getattr(aval, "sharding", None)
        own = tuple(sharding.spec) if sharding is not None else ()
        split = [(a,) if isinstance(a, str) else tuple(a or ()) for a in own]
        return split + [()] * (len(getattr(aval, "shape", ())) - len(split))

    def local(self, aval: Any) -> list[int]:
        """The shape of one device's part."""
        return [n // self.parts(axes) for n, axes in zip(aval.shape, self.spec(aval))]

    def bytes(self, aval: Any) -> int:
        if not hasattr(aval, "shape") or not hasattr(aval.dtype, "itemsize"):
            return 0
        return math.prod(self.local(aval)) * aval.dtype.itemsize

    def pad(self, aval: Any) -> int:
        """What an array of heads takes on a TPU beside its own bytes. Kernels of attention ask for lanes in
        full; for others the length may lie there."""
        shape = self.local(aval) if self.tiled and len(getattr(aval, "shape", ())) > 3 else [LANES]
        if not LANES // 4 <= shape[-1] < LANES:
            return 0
        return round(PADDED * self.bytes(aval) * (LANES / shape[-1] - 1))

    def frame(self, jaxpr: Any, times: int, looped: bool, aliased: bool = False) -> tuple[int, _Frame]:
        """(the most bytes held beside the inputs, the frame) of a program that a step runs `times` times.
        aliased: the outputs take the inputs' memory."""
        graph, frame = Graph(jaxpr), _Frame()
        outer, self.readers = self.readers, graph.readers
        for number in graph.inputs:
            frame.values[number] = _Value(0, roots=frozenset((number,)))
        for at, one in enumerate(graph.operations):
            frame.inner.append(0)
            for number in one.ins:
                if number not in frame.values:  # a literal, or a constant within a call
                    frame.values[number] = _Value(0, at, virtual=True)
            for number, value in zip(one.outs, self._operation(one, frame, at, times, looped)):
                if not value.virtual:
                    value.roots = frozenset((number,))
                value.made = at
                frame.values[number] = value
            for number, var in zip(one.outs, one.eqn.outvars if one.eqn is not None else ()):
                frame.values[number].pad = self.pad(var.aval)
                frame.values[number].aval = one.result or var.aval
        end = len(frame.inner)
        frame.inner.append(0)
        for number in graph.outputs:
            if number in frame.values:
                (self._touch if aliased else self._store)(frame, number, end, times)
        self.readers = outer
        return self._fullest(frame)[0], frame

    def _fullest(self, frame: _Frame) -> tuple[int, int]:
        change = [0] * (len(frame.inner) + 1)
        for value in frame.values.values():
            if not value.virtual and value.bytes:
                change[value.made] += value.bytes + value.pad
                change[max(value.used, value.made) + 1] -= value.bytes + value.pad
        held, best = 0, (0, 0)
        for at, inner in enumerate(frame.inner):
            held += change[at]
            best = max(best, (held + inner, at))
        return best

    def live(self, frame: _Frame, inside: bool = True) -> Iterator[Held]:
        """What is in memory when a program holds most, and inside the loop that it is then in."""
        at = self._fullest(frame)[1]
        for value in frame.values.values():
            size = value.bytes + value.pad
            if not value.virtual and size > 0 and value.made <= at <= max(value.used, value.made):
                shape = () if value.aval is None else tuple(self.local(value.aval))
                yield Held(size, shape, str(getattr(value.aval, "dtype", "")), value.what)
        if inside and at in frame.inside:
            yield from self.live(frame.inside[at])

    def _touch(self, frame: _Frame, number: int, at: int, times: int = 0) -> int:
        """Says that a value, or what it is computed from, is read at an operation. Returns the bytes read."""
        read = 0
        for root in frame.values[number].roots:
            value = frame.values[root]
            value.used = max(value.used, at)
            read += value.bytes
        return read

    def _store(self, frame: _Frame, number: int, at: int, times: int) -> None:
        """Says that a value is read as a whole, so that it is stored."""
        value = frame.values[number]
        if value.virtual and value.bytes:
            if not value.roots:  # zeros, written where what begins with them will be
                value.pad = -value.bytes
            for root in value.roots:
                frame.values[root].used = max(frame.values[root].used, value.made)
                self.traffic += times * frame.values[root].bytes
            value.virtual, value.roots = False, frozenset((number,))
            self.traffic += times * value.bytes
            self.operations += times
        self._touch(frame, number, at)

    def _operation(
        self, one: Operation, frame: _Frame, at: int, times: int, looped: bool
    ) -> Sequence[_Value]:
        """Accounts for an operation, and gives its results."""
        name, eqn, ins = one.name, one.eqn, one.ins
        if name == "again":
            value = frame.values[ins[0]]
            return [_Value(value.bytes, virtual=True, roots=value.roots, what=value.what, aval=value.aval)]
        avals = [v.aval for v in eqn.outvars]
        if one.result is not None:
            return [self._rows(one, frame, at, times, looped)]
        if name == "reshard":
            return [self._reshard(eqn, ins[0], frame, at, times, looped)]
        if name in REDUCTIONS:
            self.operations += times
            self.traffic += times * sum(self._touch(frame, number, at) for number in ins)
            results = [_Value(self.bytes(a), what=name) for a in avals]
            dims = eqn.params.get("axes", ()) if name != "gather" else ()
            split = self.spec(eqn.invars[0].aval)
            axes = tuple(a for d in dims for a in split[d])
            results[0].summed = self._transfer("sum", axes, self.bytes(avals[0]), times, avals[0], looped)
            return results
        if name in SUMS or name in COLLECTIVES or name in OPAQUE or name in ("scan", "while", "cond"):
            for number in ins:
                self._store(frame, number, at, times)
        if name in ("scan", "while", "cond"):
            return self._loop(eqn, name, ins, frame, at, times)
        if name in SUMS:
            axes = tuple(a for a in eqn.params.get("axes", eqn.params.get("axis_name")) if isinstance(a, str))
            summed = [self._transfer("sum", axes, self.bytes(a), times, a, looped) for a in avals]
            return [_Value(self.bytes(a), what=name, summed=kept) for a, kept in zip(avals, summed)]
        if name == "dot_general":
            return [self._product(eqn, times, looped)]
        if name in COLLECTIVES or name in OPAQUE:
            self._collective(eqn, name, times, looped)
            if name == "pallas_call":
                self._kernel(eqn, times)
            self.operations += times
            self.traffic += times * (
                sum(frame.values[n].bytes for n in set(ins)) + sum(map(self.bytes, avals))
            )
            return [_Value(self.bytes(a), what=name) for a in avals]
        roots = frozenset().union(*(frame.values[n].roots for n in ins)) if ins else frozenset()
        results = [_Value(self.bytes(a), virtual=True, roots=roots, what=name) for a in avals]
        pending = [kept for n in ins if (kept := frame.values[n].summed) is not None]
        if any(self.readers[n] > 1 for n in ins if frame.values[n].summed is not None):
            pending = []
        if name in ("add", "add_any"):
            joined = self._joined(*pending) if len(pending) == 2 else None
            pending = [] if joined is None else [joined]
        if name in FLAT and pending:
            results[0].summed = pending[0]
        return results

    def _rows(self, one: Operation, frame: _Frame, at: int, times: int, looped: bool) -> _Value:
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
        return _Value(size, what="gather")

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

    def _reshard(self, eqn: Any, number: int, frame: _Frame, at: int, times: int, looped: bool) -> _Value:
        before, after = eqn.invars[0].aval, eqn.outvars[0].aval
        was, now = self.spec(before), self.spec(after)
        lost = [a for x, y in zip(was, now) for a in x if a not in y]
        won = [a for x, y in zip(was, now) for a in y if a not in x]
        value = frame.values[number]
        if not lost:
            cut = None if value.summed is None else self._cut(value.summed, won)
            return _Value(self.bytes(after), virtual=True, roots=value.roots, what="reshard", summed=cut)
        self._store(frame, number, at, times)
        size = self.bytes(after)
        moved = tuple(a for a in lost if a in won)
        self._transfer("gather", [a for a in lost if a not in won], size, times, after, looped)
        self._transfer("all-to-all", moved, self.parts(moved) * size, times, after, looped)
        self.operations += times
        self.traffic += times * (self.bytes(before) + size)
        return _Value(size, what="gather")

    def _cut(self, at: int, axes: Sequence[str]) -> int | None:
        """Says that each device keeps a part along `axes` of what it has summed."""
        one = self.transfers[at]
        inside = tuple(a for a in one.axes if a in axes)
        self.transfers[at] = replace(one, cut=tuple(sorted({*one.cut, *inside})))
        return at

    def _product(self, eqn: Any, times: int, looped: bool) -> _Value:
        (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
        left, right = (v.aval for v in eqn.invars[:2])
        out = eqn.outvars[0].aval
        a, b, c = self.local(left), self.local(right), self.local(out)
        k = math.prod(a[d] for d in left_sum)
        batch = math.prod(a[d] for d in left_batch)
        m = math.prod(n for d, n in enumerate(a) if d not in (*left_sum, *left_batch))
        n = math.prod(s for d, s in enumerate(b) if d not in (*right_sum, *right_batch))
        axes = [x for d in left_sum for x in self.spec(left)[d]]
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
        return _Value(size, what="product", summed=summed)

    def _kernel(self, eqn: Any, times: int) -> None:
        """A kernel of attention: two products forward, which are made again backward with two more each for
        queries and for keys and values."""
        name = str(eqn.params.get("name") or eqn.params.get("name_and_src_info") or "")
        wide = [v.aval.shape for v in eqn.invars if len(v.aval.shape) >= 3 and v.aval.shape[-1] >= 16]
        if not wide:
            return
        q = max(wide, key=math.prod)
        products = 2 if "fwd" in name else 5 if "dkv" in name else 3
        self.products.append(Product(math.prod(q[:-2]), q[-2], q[-2], q[-1], times, 0, name, float(products)))

    def _loop(
        self, eqn: Any, name: str, ins: Sequence[int], frame: _Frame, at: int, times: int
    ) -> list[_Value]:
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
                if self.readers[number] == 1:  # what is carried takes its place
                    value.used = at - 1
        in_place = name == "cond"  # of two results, one is what it was
        for body in inside:
            held, own = self.frame(body.jaxpr, times * repeats, True, in_place)
            if name == "scan" and self.again:
                held = round(AGAIN * held)
            if held > frame.inner[at]:
                frame.inner[at], frame.inside[at] = held, own
        if in_place:
            roots = frozenset().union(*(frame.values[n].roots for n in ins))
            return [_Value(self.bytes(v.aval), virtual=True, roots=roots, what=name) for v in eqn.outvars]
        return [
            _Value(self.bytes(v.aval), what="carried" if i < carried else "kept")
            for i, v in enumerate(eqn.outvars)
        ]


def _carry(scan: Any) -> tuple[int, int]:
    """How many inputs of a scan are the same in every turn, and how many are carried; JAX 0.12 has them as
    trees."""
    params = scan.params
    if "ft_in" not in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].update(scan.invars).unpack()
    return len(list(constants)), len(list(carried))


def _seen(one: Product, model: ModelConfig) -> Product:
    """A kernel's product with the FLOPs of the keys that are seen, by all layers of attention together."""
    if not one.kernel:
        return one
    kinds = [kind for kind in model.attention_layers if kind not in ("none", "linear")]
    window, length = model.attention.window, model.n_ctx
    seen = sum(visible_keys(kind, length, window, model.causal) for kind in kinds) / len(kinds)
    return replace(one, flops=one.flops * 2.0 * one.batch * one.m * one.k * seen)


def tiles(shape: Sequence[int]) -> int:
    """The elements that an array takes on a TPU, whose registers its two last dimensions are padded to: the
    fewest of all orders of its dimensions."""
    if len(shape) < 2:
        return math.prod(shape)

    def padded(minor: int, second: int) -> float:
        lanes, rows = -(-shape[minor] // LANES) * LANES, -(-shape[second] // SUBLANES) * SUBLANES
        return math.prod(shape) / shape[minor] / shape[second] * lanes * rows

    pairs = [(i, j) for i in range(len(shape)) for j in range(len(shape)) if i != j]
    return round(min(padded(*pair) for pair in pairs)) if math.prod(shape) else 0


def count(traced: Traced, tiled: bool = True) -> Work:
    """What one device does and holds in the step of `traced`; tiled: it is a TPU."""
    sizes = dict(traced.layout.mesh.shape)
    jaxpr, _ = dce_jaxpr(traced.program.jaxpr, [True] * len(traced.program.jaxpr.outvars))
    walker = _Walker(sizes, tiled, traced.config.train.remat == "full")
    fullest, frame = walker.frame(jaxpr, 1, False, aliased=True)
    kept = sum(one.bytes for one in walker.live(frame, inside=False) if one.what == "kept")

    def held(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        shapes = [x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape for x in leaves]
        return sum((tiles(s) if tiled else math.prod(s)) * x.dtype.itemsize for s, x in zip(shapes, leaves))

    state = traced.state
    trained = held(state.trained)
    memory = Memory(
        parameters=trained + held(state.frozen),
        optimizer=held(state.opt_state),
        batch=held(traced.batch),
        gradients=trained,
        kept=kept,
        temporaries=fullest,
        checkpoint=sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)),
    )
    given = []
    for path, leaf in jax.tree_util.tree_leaves_with_path((state, traced.batch)):
        part = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        own = ("state", "batch")[path[0].idx] + jax.tree_util.keystr(path[1:])
        size = tiles(part) if tiled else math.prod(part)
        given.append(Held(size * leaf.dtype.itemsize, tuple(part), str(leaf.dtype), own))
    return Work(
        tuple(_seen(one, traced.config.model) for one in walker.products),
        tuple(one for one in walker.transfers if one.times),
        walker.traffic + 2 * (memory.parameters + memory.optimizer) + memory.gradients,
        walker.operations,
        memory,
        sizes,
        tuple(given),
        tuple(walker.live(frame)),
    )
