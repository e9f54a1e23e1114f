"""The operations of a traced program, or of one loop's body: calls put in their place, equal ones once,
unneeded ones left out."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

INLINED = (
    "jit", "pjit", "remat2", "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "eval_jaxpr",
)  # fmt: skip
SAME = ("stop_gradient", "name", "copy", "pvary", "reduce_precision", "optimization_barrier")


@dataclass
class Operation:
    name: str
    eqn: Any
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    result: Any = None  # the type of what it gives, where that is not its own
    whole: Any = None  # of a look-up: what would have gathered its table


class Graph:
    """The operations of one frame with all calls put in their place, equal ones once, unneeded ones left
    out."""

    def __init__(self, jaxpr: Any):
        self.operations: list[Operation] = []
        self.number = 0
        self.known: dict[Any, tuple[int, ...]] = {}
        env = {v: self.new() for v in [*jaxpr.constvars, *jaxpr.invars]}
        self.inputs = tuple(env.values())
        self.outputs = self._add(jaxpr, env)
        self._look_up()
        self.readers = Counter(n for one in self.operations for n in set(one.ins))
        self.readers.update(self.outputs)
        needed = set(self.outputs)
        kept = []
        for one in reversed(self.operations):
            if needed.intersection(one.outs):
                needed.update(one.ins)
                kept.append(one)
        self.operations = kept[::-1]
        self.places = {id(one): at for at, one in enumerate(self.operations)}
        self.reading: dict[int, list[Operation]] = {}  # the operations that read a value
        for one in self.operations:
            for n in set(one.ins):
                self.reading.setdefault(n, []).append(one)

    def _look_up(self) -> None:
        """A look-up of rows is written as one of all tokens in a whole table, of which each device then keeps
        its own: it is compiled as one of its own tokens in its own rows, and a sum."""
        by = {n: one for one in self.operations for n in one.outs}
        readers: dict[int, list[Operation]] = {}
        for one in self.operations:
            for n in one.ins:
                readers.setdefault(n, []).append(one)

        def behind(n: int) -> int:
            while (one := by.get(n)) and one.name in (
                "reshard",
                "again",
                "broadcast_in_dim",
                "reshape",
                "select_n",
            ):
                if one.name == "reshard":
                    return one.ins[0]
                n = one.ins[-1]
            return n

        for one in self.operations:
            after = readers.get(one.outs[0], []) if one.name == "gather" else []
            if len(after) == 1 and after[0].name == "reshard":
                table, index = one.ins
                made = by.get(table)
                if made is not None and made.name == "reshard":
                    one.whole, table = made.eqn, made.ins[0]
                one.ins, one.outs, one.result = (
                    (table, behind(index)),
                    after[0].outs,
                    after[0].eqn.outvars[0].aval,
                )
                after[0].outs = (self.new(),)

    def new(self) -> int:
        self.number += 1
        return self.number

    def _add(self, jaxpr: Any, env: dict[Any, int]) -> tuple[int, ...]:
        def of(atom: Any) -> int:
            if not hasattr(atom, "val"):
                return env[atom]
            key = ("literal", str(atom.val), str(atom.aval))
            return self.known.setdefault(key, (self.new(),))[0]

        for eqn in jaxpr.eqns:
            name, ins = eqn.primitive.name, tuple(of(a) for a in eqn.invars)
            inner = _program(eqn) if name in INLINED or name == "shard_map" else None
            if inner is not None:
                if eqn.params.get("prevent_cse"):  # what is computed again is not what was computed
                    fresh = tuple(self.new() for _ in ins)
                    self.operations += [Operation("again", None, (a,), (b,)) for a, b in zip(ins, fresh)]
                    ins = fresh
                inside = dict(zip(inner.invars, ins[len(ins) - len(inner.invars) :]))
                inside |= {v: self.new() for v in inner.constvars}
                outs = self._add(inner, inside)
            elif name in SAME:
                outs = ins
            else:
                key = None if any(map(_is_program, eqn.params.values())) else (name, ins, str(eqn.params))
                outs = self.known.get(key, ()) if key else ()
                if not outs:
                    outs = tuple(self.new() for _ in eqn.outvars)
                    self.operations.append(Operation(name, eqn, ins, outs))
                    if key:
                        self.known[key] = outs
            env.update(zip(eqn.outvars, outs))
        return tuple(of(a) for a in jaxpr.outvars)


def _is_program(param: Any) -> bool:
    some = param if isinstance(param, tuple | list) else [param]
    return any(hasattr(x, "eqns") or hasattr(x, "jaxpr") for x in some)


def _program(eqn: Any) -> Any:
    """The program that an operation calls, if it calls one."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(key)
        if inner is not None:
            return getattr(inner, "jaxpr", inner)
    return None
