"""What helps where a step does not fit: settings that are changed one by one, and each is tried, by the
compiler or by the analytic model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from neojax.config import Config, replaced
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout


@dataclass(frozen=True)
class Trial:
    """What a step needs: bytes a device, whether they are there; seconds: as estimated, None where nothing
    is known of the chip."""

    needed: int
    fits: bool
    seconds: float | None = None


@dataclass(frozen=True)
class Remedy:
    """A change of settings, and what the step then needs: as of `Trial`."""

    change: str
    needed: int
    fits: bool
    seconds: float | None = None


Trying = Callable[[Config], Trial | None]
"""Tries a configuration; None where the compiler does not say what it needs. Raises `NeojaxError` where its
settings do not go together."""


def remedies(config: Config, layout: Layout, before: Trial, tried: Trying, guessed: Trying) -> list[Remedy]:
    """What each change makes of a step that does not fit: those first that make it fit, the soonest first,
    then those that leave the least too much. A change that does not go with the other settings is left out.

    before: the step as it is, tried in the same way. guessed: tries at less cost, to choose a microbatch.
    """
    words = changes(config, layout, guessed)
    tries = [one for change in words if (one := _tried(config, [change], tried))]
    found = sorted((one for one in tries if one.needed < before.needed), key=lambda one: one.needed)
    best = {one.change.partition("=")[0]: one.change for one in reversed(found)}  # of each key
    if len(best) > 1 and not any(one.fits for one in found):
        found += [one] if (one := _tried(config, list(best.values()), tried)) else []
    return ordered(found)


def ordered(found: Sequence[Remedy]) -> list[Remedy]:
    """The soonest of those that make a step fit first, then the others, the least needed first."""
    last = float("inf")
    return sorted(
        found,
        key=lambda one: (not one.fits, (one.seconds or last) if one.fits else last, one.needed),
    )


def more_chips(config: Config, wanted: str | None, before: Trial, tried: Trying) -> Remedy | None:
    """What the topology `wanted` makes of a step, where its mesh takes what there is. tried: there."""
    if "-1" not in config.mesh.shape or not wanted:
        return None
    found = _tried(config, [], tried)
    if found is None or found.needed >= before.needed:
        return None
    return Remedy(f"--topology {wanted}", found.needed, found.fits, found.seconds)


def changes(config: Config, layout: Layout, guessed: Trying) -> Iterator[str]:
    """Settings that take memory from a step and leave what is learned as it is, but for rounding."""
    train = config.train
    if train.remat != "full":
        yield "train.remat=full"
    if train.remat == "none":
        yield "train.remat=names"
    for size in _microbatches(config, layout, guessed):
        yield f"train.microbatch={size}"
    whole = [a for a in layout.axes("batch") if a not in _storing(layout) and layout.mesh.shape[a] > 1]
    if whole and "embd" not in layout.used:
        own = layout.axes("embd", stored=True)
        kept = [f"{d}:{'+'.join(axes)}" for d, axes in _only_stored(layout).items() if d != "embd"]
        rule = ", ".join([*kept, f"embd:{'+'.join([*own, *whole])}"])
        yield f'mesh.param_layout="{rule}"'
    if train.optimizer != "adafactor" and train.moment_dtype == "float32":
        yield "train.moment_dtype=bfloat16"


def _microbatches(config: Config, layout: Layout, guessed: Trying) -> list[int]:
    """The largest microbatch that is smaller than it is, the largest of those that fit as guessed, and the
    smallest, once each."""
    train = config.train
    rows, parts = train.microbatch or train.batch_size, layout.split("batch")
    sizes = [n for n in range(parts, rows, parts) if train.batch_size % n == 0 and rows % n == 0]
    if not sizes:
        return []
    low, high = 0, len(sizes)  # those below low fit
    while low < high:
        middle = (low + high) // 2
        found = _tried(config, [f"train.microbatch={sizes[middle]}"], guessed)
        low, high = (middle + 1, high) if found and found.fits else (low, middle)
    return sorted({sizes[-1], sizes[max(0, low - 1)], sizes[0]}, reverse=True)


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


def _tried(config: Config, words: list[str], tried: Trying) -> Remedy | None:
    try:
        one = tried(_changed(config, words))
    except NeojaxError:  # it does not go with the others
        return None
    return Remedy(" ".join(words), one.needed, one.fits, one.seconds) if one else None
