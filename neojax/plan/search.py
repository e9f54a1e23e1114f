"""`neojax plan --search`: the layout, recomputation and microbatch with which a machine trains a model
soonest.

The analytic model tells of every candidate whether it fits and how long a step takes; the best few are then
compiled, which says what they really hold and which collectives nothing hides. These are ranked by that,
before all others, which the model ranks: a time with compiled collectives is never held against one without.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from neojax import config as configuration
from neojax.config import Config
from neojax.errors import NeojaxError
from neojax.layout.mesh import fill_shape
from neojax.layout.names import parse_shape
from neojax.plan.apart import compile_apart
from neojax.plan.as_compiled import as_compiled
from neojax.plan.auto import is_auto
from neojax.plan.candidates import Candidate, Found, emptied, explore, layouts
from neojax.plan.estimate import Analysis, Estimate, duration
from neojax.plan.machine import Machine
from neojax.plan.report import gb

AS_IT_IS = "as configured"
GPT_NEO = "gpt-neo's layout"
MINUTES = 15.0
UNROLLED = 2  # layers in a turn of the loop, beside one
LOOKING = 0.6  # of the time, in which candidates are looked at; the rest is the compiler's


@dataclass
class Ranked:
    """A candidate with what is known of it. analysis: by the model; needed: bytes, and as_compiled: the
    estimate, by the compiled step where there is one; refused: why it cannot be."""

    one: Candidate
    analysis: Analysis
    needed: float
    as_compiled: Estimate | None = None
    refused: str = ""

    @property
    def compiled(self) -> bool:
        return self.as_compiled is not None

    @property
    def model(self) -> Estimate:
        """The estimate by the model's own counts."""
        return self.analysis.estimate

    @property
    def estimate(self) -> Estimate:
        """The estimate by the best that is known."""
        return self.as_compiled or self.model

    @property
    def is_known(self) -> bool:
        """Whether the compiler has answered."""
        return self.compiled or bool(self.refused)

    @property
    def seconds(self) -> float:
        return float("inf") if self.refused else self.estimate.seconds


def own_candidates(config: Config, on: Machine) -> list[Candidate]:
    """What every search looks at too: the configuration as it is, and the layout that gpt-neo's own
    configurations have."""
    train = config.train
    theirs = replace(config.mesh, shape="x:-1, y:2", layout="batch:x, embd:y", param_layout="")
    found = [Candidate(config.mesh, train.remat, train.microbatch, AS_IT_IS)]
    if is_auto(config.mesh):
        found.clear()
    if on.slices == 1 and on.devices % 2 == 0:
        found.append(Candidate(theirs, train.remat, train.microbatch, GPT_NEO))
    return found


def search(
    config: Config,
    on: Machine,
    *,
    finalists: int = 3,
    minutes: float = MINUTES,
    say: Callable[[str], None] = print,
    show: Callable[[Sequence[Ranked], Found], None] = lambda ranked, found: None,
) -> tuple[list[Ranked], Found]:
    """The candidates that fit, the best first, and what came of all others. `finalists` of them are compiled:
    the soonest, and the next where one does not fit; then the best of them again, with two layers in a turn
    of their loop. The best is one that is compiled, where any is that fits.

    `show` is given the ranking by the model, before anything is compiled. The search ends after `minutes`,
    and by Ctrl-C: what is known by then is given. Raises `NeojaxError` where nothing fits, with the
    constraint that left nothing.
    """
    with _noted() as pressed:
        return _search(config, on, finalists, minutes, say, show, pressed)


@contextlib.contextmanager
def _noted() -> Iterator[list[int]]:
    """Inside, Ctrl-C is noted besides: JAX swallows a KeyboardInterrupt that is raised within its callbacks.
    Where somebody else handles or ignores the signal, it is left to them."""
    pressed: list[int] = []
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return

    def note(number: int, _: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _search(
    config: Config,
    on: Machine,
    finalists: int,
    minutes: float,
    say: Callable[[str], None],
    show: Callable[[Sequence[Ranked], Found], None],
    pressed: Sequence[int],
) -> tuple[list[Ranked], Found]:
    begun, found = time.monotonic(), Found()
    stopped = ""
    looking = LOOKING if finalists else 1.0

    def left(share: float = 1.0) -> float:
        return share * 60 * minutes - (time.monotonic() - begun)

    def compiled(entry: Ranked, called: str) -> bool:
        """Asks the compiler about a candidate, and says so and what it said; whether there was time."""
        say(f"compiling with little effort: {called}")
        if not _compile(entry, config, on, left()):
            return False
        outcome = entry.refused or f"{duration(entry.seconds)} a step"
        say(f"{outcome}, {gb(entry.needed)} a device; {_since(begun)}")
        return True

    def is_time(one: Candidate, said: str) -> bool:
        nonlocal stopped
        if pressed:
            raise KeyboardInterrupt
        if left(looking) < 0:
            stopped = f"{looking * minutes:.3g} of {minutes:g} minutes are over"
        return not stopped

    try:
        for one in own_candidates(config, on):
            # gpt-neo's layout is looked at with any recomputation and microbatch: as given it may not fit.
            for free in (False, True) if one.named == GPT_NEO else (False,):
                explore(
                    one.of(config),
                    on,
                    iter([one.mesh]),
                    free=free,
                    named=one.named,
                    found=found,
                    watch=is_time,
                )
        say(f"as configured, and gpt-neo's own layout: {len(found.fitting)} fit {on} by the model")
        explore(config, on, layouts(config, on), found=found, watch=is_time)
    except KeyboardInterrupt:
        stopped = "interrupted"
    if not found.fitting:
        if stopped:
            raise NeojaxError(
                f"{stopped} before a candidate was found that fits; give the search more minutes"
            )
        raise emptied(found, config, on)
    ranked = _ranked(found, on)
    say(f"{len(ranked)} candidates fit by the model, {len(found.hindered)} do not; {_since(begun)}")
    if finalists and stopped != "interrupted":
        if stopped:
            say(f"{stopped}: no more candidates")
        show(ranked, found)
        stopped = ""
        try:
            while sum(e.compiled for e in ranked) < finalists:
                entry = min((e for e in ranked if not e.is_known), key=lambda e: e.seconds, default=None)
                if entry is None:
                    break
                if not compiled(entry, entry.one.told):
                    stopped = f"{minutes:g} minutes are over"
                    break
            if (entry := _unrolled(ranked, config)) and not stopped:
                if compiled(entry, f"the best of them, unroll {entry.one.unroll}"):
                    ranked.append(entry)
                else:
                    say(f"{minutes:g} minutes are over before the compiler had an answer")
        except KeyboardInterrupt:
            stopped = "interrupted"
    if stopped:
        say(f"{stopped}; what was found until then:")
    if all(entry.refused for entry in ranked):
        raise NeojaxError(
            f"{len(ranked)} candidates fit {on} by the model, and none as compiled: {ranked[0].refused}; "
            "take more chips, or a smaller train.batch_size"
        )
    return ordered(ranked), found


def _unrolled(ranked: Sequence[Ranked], config: Config) -> Ranked | None:
    """The best that is compiled, with another number of layers in a turn of their loop: the compiler alone
    can tell what that is worth."""
    best = ordered(ranked)[0]
    if not best.compiled or config.model.n_layer < 2 * UNROLLED:
        return None
    other = 1 if config.train.unroll not in (None, 1) else UNROLLED
    return replace(best, one=replace(best.one, unroll=other), as_compiled=None)


def _since(begun: float) -> str:
    return f"{(time.monotonic() - begun) / 60:.1f} minutes"


def _ranked(found: Found, on: Machine) -> list[Ranked]:
    """What fits, once each: a layout that has a name by its name."""
    known: dict[tuple[object, ...], Ranked] = {}
    for one, analysis in sorted(found.fitting, key=lambda pair: not pair[0].named):
        sizes = fill_shape(parse_shape(one.mesh.shape), on.devices, "mesh.shape")
        key = tuple(sizes.items()), one.mesh.layout, one.mesh.param_layout, one.remat, one.microbatch
        known.setdefault(key, Ranked(one, analysis, analysis.work.memory.total))
    found_once: dict[object, Ranked] = {}
    for entry in ordered(list(known.values())):  # what has a name stands there once, as it is soonest
        found_once.setdefault(entry.one.named or id(entry), entry)
    return list(found_once.values())


def ordered(ranked: Sequence[Ranked]) -> list[Ranked]:
    """The soonest first: of those that are compiled, then of the others by the model; what is refused
    last."""
    return sorted(ranked, key=lambda entry: (bool(entry.refused), not entry.compiled, entry.seconds))


def _compile(entry: Ranked, config: Config, on: Machine, timeout: float) -> bool:
    """Puts what the compiler says of a candidate in place of the model's counts; whether there was time."""
    if timeout <= 0:
        return False
    try:
        done = compile_apart(entry.one.of(config), str(on), timeout)
    except NeojaxError as e:
        entry.refused = str(e)
        return True
    if done is None:
        return False
    if done.memory is not None:
        entry.needed = done.memory.needed
    if done.fits:
        entry.as_compiled = as_compiled(entry.analysis, done.moved).estimate
    else:
        entry.refused = "compiled, it does not fit"
    return True


def print_search(ranked: Sequence[Ranked], found: Found, *, show: int = 12, short: bool = False) -> None:
    """The table: the winner, and why each other lost; unless short, what hindered those that are not in it.
    The time of a step with the collectives as compiled, where anything is, beside that by the model."""
    best = ranked[0]
    table = Table(box=None, pad_edge=False, header_style="bold")
    right = (*("as compiled",) * best.compiled, "by the model", "MFU", "a device")
    for title in ("", *right, "mesh", "layout; param_layout", "recomputes", "microbatch", "why not"):
        table.add_column(title, no_wrap=True, justify="right" if title in right else "left")
    for i, entry in enumerate(ranked):
        if i >= show and not entry.one.named and not entry.is_known:
            continue
        mesh, e = entry.one.mesh, entry.estimate
        table.add_row(
            " ".join(filter(None, (str(i + 1), entry.one.named))),
            *(duration(e.seconds) if entry.compiled else "",) * best.compiled,
            duration(entry.model.seconds),
            f"{e.mfu:.0%}",
            gb(entry.needed),
            mesh.shape,
            mesh.layout + (f"; {mesh.param_layout}" if mesh.param_layout else ""),
            entry.one.recomputes,
            str(entry.one.microbatch or "the batch"),
            "" if entry is best else why(entry, best),
        )
    Console(width=None if Console().is_terminal else 260, soft_wrap=True).print(table)
    if short:
        return
    for one, said in refused(found):
        print(f"{one.named} ({one.told}): {said}")
    counted: dict[str, list[Candidate]] = {}
    for one, said in found.hindered:
        counted.setdefault("does not fit in memory" if "does not fit:" in said else said, []).append(one)
    for said, ones in sorted(counted.items(), key=lambda pair: -len(pair[1]))[:8]:
        print(f"{len(ones)} candidates: {said[:160]}; such as {ones[0].told}")


def refused(found: Found) -> list[tuple[Candidate, str]]:
    """What hindered the candidates that have a name, as they were first looked at."""
    first: dict[str, tuple[Candidate, str]] = {}
    for one, said in found.hindered:
        if one.named:
            first.setdefault(one.named, (one, said))
    return list(first.values())


def listed(ranked: Sequence[Ranked]) -> list[dict[str, object]]:
    """The ranking as dictionaries: seconds, bytes, and the keys that make it."""
    best = ranked[0]
    return [
        {
            "shape": entry.one.mesh.shape,
            "layout": entry.one.mesh.layout,
            "param_layout": entry.one.mesh.param_layout,
            "dcn_shape": entry.one.mesh.dcn_shape,
            "remat": entry.one.remat,
            "microbatch": entry.one.microbatch,
            "unroll": entry.one.unroll,
            "named": entry.one.named,
            "seconds": entry.estimate.seconds,
            "seconds_by_model": entry.model.seconds,
            "mfu": entry.estimate.mfu,
            "needed": entry.needed,
            "compiled": entry.compiled,
            "why_not": "" if entry is best else why(entry, best),
        }
        for entry in ranked
    ]


def why(entry: Ranked, best: Ranked) -> str:
    """Why a candidate lost: what it spends most on beyond the winner; of one that is not compiled, by the
    model's counts of both."""
    if entry.refused:
        return entry.refused
    both = entry.compiled and best.compiled
    mine, theirs = (entry.estimate, best.estimate) if both else (entry.model, best.model)
    parts = {
        "products": mine.products - theirs.products,
        "attention": mine.kernels - theirs.kernels,
        "traffic of memory": mine.traffic - theirs.traffic,
        "collectives beside nothing": mine.alone - theirs.alone,
        "links that are slower than the chips": _waits(mine) - _waits(theirs),
        "the network": mine.network - theirs.network,
    }
    name, extra = max(parts.items(), key=lambda pair: pair[1])
    by = "by the model " if best.compiled and not both else ""
    if mine.seconds < theirs.seconds:
        return f"{by}{1 - mine.seconds / theirs.seconds:.0%} sooner; not compiled"
    slower = f"{by}{mine.seconds / theirs.seconds - 1:.0%} slower"
    return f"{slower}: {duration(extra)} more for {name}" if extra > 0 else slower


def _waits(one: Estimate) -> float:
    return max(0.0, one.links - one.alone - one.compute)


def _beside(best: Ranked) -> str:
    if not best.compiled:
        return ""
    own = duration(best.model.seconds)
    return f" with the collectives as compiled\n# ({own} with those that the model counts)"


def winner_text(ranked: Sequence[Ranked], found: Found, config: Config, on: Machine) -> str:
    """The configuration of the winner as YAML, with the reason in its comments."""
    best = ranked[0]
    e = best.estimate
    lines = [
        f"# The best layout found for {on} by `neojax plan --search`.",
        f"# A step is estimated at {duration(e.seconds)} ({duration(e.low)} to {duration(e.high)})"
        f"{_beside(best)}, {e.tokens_per_second:,.0f} tokens/s, {e.mfu:.0%} MFU, bound by {e.bound};",
        f"# it needs {gb(best.needed)} of {gb(best.analysis.room)} a device"
        f"{', as compiled with little effort' if best.compiled else ', by the analytic model'}.",
        "# Others, and why they lost:",
    ]
    others = [entry for entry in ranked[1:] if entry.one.named] + list(ranked[1:4])
    for entry in dict.fromkeys(map(id, others)):
        other = next(x for x in others if id(x) == entry)
        name = f"{other.one.named}: " if other.one.named else ""
        lines.append(f"#   {name}{other.one.told}: {why(other, best)}")
    lines += [f"#   {one.named}: {one.told}: {said}" for one, said in refused(found)]
    return "\n".join(lines) + "\n" + configuration.dump(best.one.of(config))
