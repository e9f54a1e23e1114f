"""The layouts that the names of a model's dimensions allow on a machine, and which of them are best by the
analytic model."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from neojax.config import Config, MeshConfig
from neojax.errors import NeojaxError
from neojax.layout.mesh import fill_shape
from neojax.layout.names import parse_layout, parse_shape
from neojax.plan.estimate import Analysis, analyse
from neojax.plan.machine import Machine

STAGES = 8  # of a pipeline, at most
STORED = 16  # devices that share parameters, where all that a batch is split over would be too many
LONG = 8192  # tokens of a row from which on it is split by itself, too
REMATS = ("none", "names", "full")
FAR = 1.25  # a layout so much slower than the best, before anything is computed again, is left alone


@dataclass(frozen=True)
class Candidate:
    """A mesh with its layout, a way of recomputing and a microbatch (0: the batch); unroll: None: that of the
    configuration."""

    mesh: MeshConfig
    remat: str
    microbatch: int
    named: str = ""
    unroll: int | None = None

    def of(self, config: Config) -> Config:
        """`config` with this layout in place of its own."""
        train = replace(config.train, remat=self.remat, microbatch=self.microbatch)
        if self.unroll is not None:
            train = replace(train, unroll=self.unroll)
        return replace(config, mesh=self.mesh, train=train)

    @property
    def told(self) -> str:
        """The candidate in words."""
        stored = f"; {self.mesh.param_layout}" if self.mesh.param_layout else ""
        batch = f", microbatch {self.microbatch}" if self.microbatch else ""
        return f"{self.mesh.shape} | {self.mesh.layout}{stored} | {self.recomputes}{batch}"

    @property
    def recomputes(self) -> str:
        """How layers are computed again and unrolled."""
        return self.remat + ("" if self.unroll is None else f", unroll {self.unroll}")


@dataclass
class Found:
    """What came of the candidates: those that fit, the soonest first; what hindered the others, and how
    often; the nearest to fitting."""

    fitting: list[tuple[Candidate, Analysis]] = field(default_factory=list)
    hindered: list[tuple[Candidate, str]] = field(default_factory=list)
    constraints: Counter[str] = field(default_factory=Counter)
    least: tuple[Candidate, Analysis] | None = None

    def add(self, one: Candidate, analysis: Analysis) -> bool:
        """Takes an analysed candidate in; whether it fits."""
        if analysis.fits:
            self.fitting.append((one, analysis))
            self.fitting.sort(key=lambda pair: pair[1].estimate.seconds)
            return True
        self.constraints["memory"] += 1
        need = analysis.work.memory.total
        self.hindered.append((one, f"does not fit: {need / 1e9:.3g} GB of {analysis.room / 1e9:.3g}"))
        if self.least is None or need < self.least[1].work.memory.total:
            self.least = one, analysis
        return False


def layouts(config: Config, on: Machine, *, stages: bool = True) -> Iterator[MeshConfig]:
    """Every layout worth a look: the batch alone, heads, MLP and vocabulary split too, the sequence with them
    or, of long rows, by itself, experts and, with `stages`, layers; parameters whole, stored over a part of
    the devices that split the batch, or over all."""
    model = config.model
    keep = replace(config.mesh, dcn_shape="")
    experts = model.experts.number if any(model.expert_layers) else 0
    for ways in _powers(on.domain):
        if on.devices % ways:
            continue
        for kind, axis, more in _kinds(config, on, ways, stages):
            for one in _stored(on.devices // ways, on, experts if kind != "stages" else 0, kind == ""):
                sizes = one.sizes | ({axis: ways} if ways > 1 else {})
                stored = [one.stored]
                if kind == "rows" and one.stored:
                    stored.append(f"{one.stored}+{axis}")
                elif kind == "rows":
                    stored.append(f"embd:{axis}")
                for rule in stored:
                    positions = f", positions:{axis}" if kind == "rows" and axis not in rule else ""
                    positions = positions if model.positions.kind == "learned" else ""
                    yield replace(
                        keep,
                        shape=", ".join(f"{name}:{n}" for name, n in sizes.items()),
                        layout=f"batch:{one.batch}" + more + positions + one.spread,
                        param_layout=rule,
                        dcn_shape=one.dcn,
                    )


def _powers(most: int) -> Iterator[int]:
    """The powers of two up to `most` that divide it."""
    n = 1
    while n <= most and not most % n:
        yield n
        n *= 2


def _kinds(config: Config, on: Machine, ways: int, stages: bool) -> Iterator[tuple[str, str, str]]:
    """(kind, axis, rules) of what may be split over `ways` devices beside the batch."""
    model = config.model
    if ways == 1:
        yield "", "", ""
        return
    if not model.attention.heads % ways and not model.mlp_dim % ways:
        split = ", heads:model, mlp:model, vocab:model"
        if any(model.expert_layers) and not model.expert_dim % ways:
            split += ", expert_mlp:model"
        yield "tensor", "model", split
        if not model.n_ctx % ways:
            yield "sequence", "model", f"{split}, sequence:model"
    is_long = model.n_ctx >= LONG or config.train.batch_size < on.devices
    if is_long and not model.n_ctx % ways:
        yield "rows", "row", ", sequence:row"
    if stages and not model.n_layer % ways and ways <= STAGES:
        yield "stages", "stage", ", layers:stage, vocab:stage"


@dataclass(frozen=True)
class _Spread:
    """How the devices of a batch are laid: its axes and their sizes, param_layout, where experts lie."""

    batch: str
    stored: str
    sizes: dict[str, int]
    dcn: str = ""
    spread: str = ""


def _stored(data: int, on: Machine, experts: int, alone: bool) -> Iterator[_Spread]:
    """Parameters whole, over a part, over all; with experts, also these on an axis of their own, which cannot
    store what it splits: so FSDP takes the others. alone: nothing else is split."""
    outer, dcn = ({"slices": on.slices}, f"slices:{on.slices}") if on.slices > 1 else ({}, "")
    if data % on.slices:
        return
    near = data // on.slices
    batch = "+".join([*outer, "data"])
    whole = ["", *(["embd:data"] if near > 1 else []), *([f"embd:{batch}"] if outer else [])]
    if not experts or alone:
        for stored in whole:
            yield _Spread(batch, stored, outer | {"data": near}, dcn)
        few = on.domain if on.chip.axes == 0 else STORED
        if not outer and data > few and not data % few:
            yield _Spread("copies+data", "embd:data", {"copies": data // few, "data": few})
    sizes = [n for n in _powers(near) if n > 1 and not experts % n] if experts else []
    for n in sizes if alone else sizes[-1:]:
        left = near // n
        rules = ["", *(["embd:data"] if left > 1 else []), *([f"embd:{batch}"] if outer else [])]
        for stored in rules if alone else rules[-1:]:
            lies = outer | {"data": left, "expert": n}
            yield _Spread(f"{batch}+expert", stored, lies, dcn, ", experts:expert")


def explore(
    config: Config,
    on: Machine,
    meshes: Iterator[MeshConfig],
    *,
    free: bool = True,
    named: str = "",
    found: Found | None = None,
    watch: Callable[[Candidate, str], bool] = lambda one, said: True,
) -> Found:
    """Analyses candidates: for every mesh, with `free`, each way of recomputing in the fewest microbatches
    with which it fits; a way that computes more is left out where one that computes less fits whole, or is
    already far slower than the best. `watch` is told of each, and may say that it is enough."""
    found = found or Found()
    for mesh in meshes:
        whole = False  # nothing that computes more is worth a look
        numbers = _parts(config, mesh, on) if free else [0]
        for remat in REMATS if free else (config.train.remat,):
            if whole:
                break
            least = 1.0  # parts of a batch below which nothing fits
            needs: list[tuple[float, float]] = []  # (the part of a batch, bytes) that did not fit
            for parts in numbers:
                is_last = parts == numbers[-1] and not found.fitting  # told of where nothing fits
                if 1 < parts < least and not is_last:
                    continue
                rows = config.train.microbatch if not free else _rows(config.train.batch_size, parts)
                one = Candidate(mesh, remat, rows, named)
                try:
                    analysis = analyse(one.of(config), on)
                except NeojaxError as e:
                    found.constraints[_constraint(str(e))] += 1
                    found.hindered.append((one, str(e)))
                    if not watch(one, str(e)):
                        return found
                    if "microbatch" in str(e) and "stage" in mesh.shape:
                        continue  # a pipeline needs several
                    break
                fits = found.add(one, analysis)
                if not watch(one, "" if fits else found.hindered[-1][1]):
                    return found
                if fits:
                    whole = parts == 1
                    break
                memory = analysis.work.memory
                best = found.fitting[0][1].estimate.seconds if found.fitting else math.inf
                if memory.arguments + memory.gradients > analysis.room or (
                    not named and analysis.estimate.seconds > FAR * best
                ):
                    whole = True  # microbatches and recomputation do not help, or make a slow one slower
                    break
                # What a microbatch holds falls at most as its rows do.
                least = parts * memory.kept / max(1.0, analysis.room - memory.arguments)
                if parts > 1:  # a step that is not cut has no sums of gradients
                    needs.append((1 / parts, memory.total))
                least = max(least, _fewest(needs, analysis.room))
    return found


def _parts(config: Config, mesh: MeshConfig, on: Machine) -> list[int]:
    """Into how many microbatches a step may be cut: powers of two, down to a row for each device."""
    sizes = fill_shape(parse_shape(mesh.shape), on.devices, "mesh.shape", is_here=False)
    split = math.prod(sizes[a] for a in parse_layout(mesh.layout, list(sizes), "mesh.layout")["batch"])
    most = config.train.batch_size // split
    if config.train.batch_size % split:
        return [1]  # the analysis says why not
    return sorted({most, *(n for n in _powers(1 << most.bit_length()) if n <= most and not most % n)})


def _fewest(needs: Sequence[tuple[float, float]], room: float) -> float:
    """The fewest microbatches that may fit, from two numbers of them that do not: the most of several things,
    each linear in the rows of a microbatch, is above the line through two points beyond them."""
    if len(needs) < 2:
        return 1.0
    (x, more), (y, less) = needs[-2:]
    slope = (more - less) / (x - y)
    rest = less - slope * y
    return slope / (room - rest) if rest < room else math.inf


def _rows(batch: int, parts: int) -> int:
    return 0 if parts == 1 else batch // parts


def _constraint(said: str) -> str:
    """Which constraint a refusal is about."""
    if "batch" in said:
        return "train.batch_size, which has to divide by the devices that split it"
    if "does not divide" in said or "parts" in said:
        return "the sizes of the model's dimensions, which have to divide"
    return "what the model's layers can be split along"


def emptied(found: Found, config: Config, on: Machine) -> NeojaxError:
    """Why no candidate is left."""
    if found.least is not None:
        one, analysis = found.least
        return NeojaxError(
            f"no layout of this model fits {on}: memory is what lacks; the least is "
            f"{analysis.work.memory.total / 1e9:.3g} GB a device of {analysis.room / 1e9:.3g} ({one.told}); "
            "take more chips, or a smaller train.batch_size or model.n_ctx"
        )
    if not found.constraints:
        return NeojaxError(f"no layout of this model divides the {on.devices} devices of {on}")
    name, count = found.constraints.most_common(1)[0]
    return NeojaxError(
        f"no layout of this model is possible on {on}: {count} fail by {name}; for example "
        f"{found.hindered[0][1]}"
    )
