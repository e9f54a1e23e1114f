"""What helps where a step does not fit: settings that are changed one by one, and each is compiled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from neojax.config import Config, replaced
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout
from neojax.layout.slice_names import larger
from neojax.layout.topology import tpu_devices
from neojax.plan.compiled import Compiled, compile_step


@dataclass(frozen=True)
class Remedy:
    """A change of settings. needed: bytes a device that the step then needs, compiled with little effort;
    fits: whether they are there."""

    change: str
    needed: int
    fits: bool


def remedies(
    config: Config, one: Compiled, compiled: Callable[[Config], Compiled]
) -> tuple[int, list[Remedy]]:
    """(bytes a device that `config` needs, compiled with little effort; what each change makes of them, the
    least first). A change that does not go with the other settings is left out. one: the step that does not
    fit; `compiled` compiles with little effort."""
    before = (one if one.quick else compiled(config)).memory
    needed = before.needed if before else 0
    tried = [_tried(config, [change], compiled) for change in changes(config, one.layout)]
    found = sorted((one for one in tried if one and one.needed < needed), key=lambda one: one.needed)
    best = {one.change.partition("=")[0]: one.change for one in reversed(found)}  # of each key
    if len(best) > 1 and not found[0].fits and (together := _tried(config, list(best.values()), compiled)):
        found.insert(0, together)
    return needed, found


def more_chips(config: Config, topology: str, before: int) -> Remedy | None:
    """What twice the chips make of a step that needs `before` bytes, where its mesh takes what there is."""
    if "-1" not in config.mesh.shape or not (wanted := larger(topology)):
        return None
    try:
        one = compile_step(config, tpu_devices(wanted), quick=True)
    except NeojaxError:  # they do not divide what is split
        return None
    if one.memory is None or one.memory.needed >= before:
        return None
    return Remedy(f"--topology {wanted}", one.memory.needed, one.fits)


def changes(config: Config, layout: Layout) -> Iterator[str]:
    """Settings that take memory from a step and leave what is learned as it is, but for rounding."""
    train = config.train
    if train.remat != "full":
        yield "train.remat=full"
    if train.remat == "none":
        yield "train.remat=names"
    rows, parts = train.microbatch or train.batch_size, layout.split("batch")
    sizes = [n for n in range(parts, rows, parts) if train.batch_size % n == 0 and rows % n == 0]
    for size in sorted({sizes[-1], sizes[0]}, reverse=True) if sizes else ():
        yield f"train.microbatch={size}"
    whole = [a for a in layout.axes("batch") if a not in _storing(layout) and layout.mesh.shape[a] > 1]
    if whole and "embd" not in layout.used:
        own = layout.axes("embd", stored=True)
        kept = [f"{d}:{'+'.join(axes)}" for d, axes in _only_stored(layout).items() if d != "embd"]
        rule = ", ".join([*kept, f"embd:{'+'.join([*own, *whole])}"])
        yield f'mesh.param_layout="{rule}"'
    if train.optimizer != "adafactor" and train.moment_dtype == "float32":
        yield "train.moment_dtype=bfloat16"


def _storing(layout: Layout) -> set[str]:
    """The axes that split what is stored."""
    return {axis for dim, axes in layout.stored.items() if dim != "batch" for axis in axes}


def _only_stored(layout: Layout) -> dict[str, tuple[str, ...]]:
    return {d: axes for d, axes in layout.stored.items() if layout.used.get(d) != axes}


def _changed(config: Config, words: list[str]) -> Config:
    for word in words:
        key, _, value = word.partition("=")
        config = replaced(config, key, int(value) if value.isdigit() else value.strip('"'))
    return config


def _tried(config: Config, words: list[str], compiled: Callable[[Config], Compiled]) -> Remedy | None:
    try:
        one = compiled(_changed(config, words))
    except NeojaxError:  # it does not go with the others
        return None
    return Remedy(" ".join(words), one.memory.needed, one.fits) if one.memory else None
