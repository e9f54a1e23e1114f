"""The layouts that the names of a model's dimensions allow on a machine, and which of them are best by the
analytic model."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from neojax.config import Config, MeshConfig
from neojax.errors import NeojaxError
from neojax.plan.estimate import Analysis, analyse
from neojax.plan.machine import Machine

WAYS = (2, 4, 8, 16)  # over which dimensions of a layer are split
STORED = 16  # devices that share parameters, where all that a batch is split over would be too many
PARTS = (1, 2, 4, 8, 16, 32)  # microbatches of a step
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
    """Every layout worth a look: the batch alone, heads, MLP and vocabulary split too, the sequence, experts
    and, with `stages`, layers; parameters whole, stored over a part of the devices that split the batch, or
    over all."""
    model = config.model
    experts = model.experts.number if any(model.expert_layers) else 0
    keep = replace(config.mesh, dcn_shape="")
    for ways in (1, *WAYS):
        if on.devices % ways or on.domain % ways:
            continue
        data = on.devices // ways
        kinds = {"": ""} if ways == 1 else {}
        if ways > 1 and not model.attention.heads % ways and not model.mlp_dim % ways:
            split = "heads:model, mlp:model, vocab:model"
            kinds |= {"tensor": split}
            if not model.n_ctx % ways:
                kinds |= {"sequence": f"{split}, sequence:model"}
        if ways > 1 and stages and not model.n_layer % ways and ways <= 8:
            kinds |= {"stages": "layers:stage, vocab:stage"}
        for kind, more in kinds.items():
            other = "stage" if kind == "stages" else "model"
            for batch, stored, sizes, dcn in _stored(data, on):
                last = list(sizes)[-1]
                if experts and (stored or experts % sizes[last]):
                    continue  # an axis splits one dimension of a tensor: embd or experts
                spread = f", experts:{last}" if experts else ""
                shape = ", ".join(f"{axis}:{n}" for axis, n in sizes.items())
                shape += f", {other}:{ways}" if ways > 1 else ""
                used = f"batch:{batch}" + (f", {more}" if more else "") + spread
                yield replace(keep, shape=shape, layout=used, param_layout=stored, dcn_shape=dcn)


def _stored(data: int, on: Machine) -> Iterator[tuple[str, str, dict[str, int], str]]:
    """(axes of the batch, param_layout, sizes of its axes, dcn_shape): parameters whole, over a part, over
    all."""
    if on.slices > 1:
        if data % on.slices:
            return
        sizes = {"slices": on.slices, "data": data // on.slices}
        dcn = f"slices:{on.slices}"
        for stored in ("", "embd:data", "embd:slices+data"):
            yield "slices+data", stored, sizes, dcn
        return
    yield "data", "", {"data": data}, ""
    if data > 1:
        yield "data", "embd:data", {"data": data}, ""
    near = on.domain if on.chip.axes == 0 else STORED
    if data > near and not data % near:
        yield "copies+data", "embd:data", {"copies": data // near, "data": near}, ""


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
        for remat in REMATS if free else (config.train.remat,):
            if whole:
                break
            least = 1.0  # parts of a batch below which nothing fits
            for parts in PARTS if free else (0,):
                if 1 < parts < least:
                    continue
                rows = config.train.microbatch if not free else _rows(config.train.batch_size, parts)
                if rows is None:
                    break
                one = Candidate(mesh, remat, rows, named)
                try:
                    analysis = analyse(one.of(config), on)
                except NeojaxError as e:
                    found.constraints[_constraint(str(e))] += 1
                    found.hindered.append((one, str(e)))
                    if not watch(one, str(e)):
                        return found
                    if "microbatch" in str(e) and parts < PARTS[-1] and "stage" in mesh.shape:
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
    return found


def _rows(batch: int, parts: int) -> int | None:
    if batch % parts:
        return None
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
