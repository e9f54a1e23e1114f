"""Attention kernels: the devices' own against XLA's and against the definition: values, gradients, time;
block sizes.

Operands are bfloat16. Errors are those of the result and of the three gradients, the largest of
norm(difference) / norm(reference), the reference being float32 with full products; XLA's own kernel in
bfloat16 is the yardstick.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from jobs import Job, Row, fitting, one_line

from parts import ROUNDS, Chip, measured


class Case(NamedTuple):
    """Causal attention over `sequence` tokens, of which a query sees the last `window`; None: all before."""

    sequence: int
    head_dim: int
    window: int | None

    def __str__(self) -> str:
        reach = f"window {self.window}" if self.window else "global"
        return f"sequence {self.sequence}, head_dim {self.head_dim}, {reach}"


CASES = (
    Case(2048, 128, None),
    Case(2048, 128, 256),
    Case(2048, 64, None),
    Case(2048, 64, 256),
    Case(8192, 128, None),
    Case(8192, 128, 256),
)
BLOCKS = (128, 256, 512, 1024, 2048)
HEADS, TOKENS = 16, 16384
WORST = 0.02  # relative error that bfloat16 operands and results do not explain


def jobs(chip: Chip, tiny: bool) -> list[Job]:
    """Own kernel, XLA's and the definition for every case; then Splash's block sizes on TPUs."""
    common = {"platform": chip["platform"], "cases": CASES, "heads": HEADS, "tokens": TOKENS, "calls": 20}
    if tiny:
        common |= {"cases": (Case(160, 16, None), Case(160, 16, 50)), "heads": 2, "tokens": 320, "calls": 1}
    sizes = {
        **common,
        "cases": (Case(128, 16, 50),) if tiny else CASES,
        "blocks": BLOCKS[:1] if tiny else BLOCKS,
    }
    return [Job("attention", compared, common, 60, 300), Job("splash, block sizes", splash_blocks, sizes, 30)]


def compared(options: Mapping[str, Any]) -> Iterator[Row]:
    """Every case by every kernel, one row each."""
    from neojax.kernels.attention import attention, reference

    kernels: dict[str, Callable[..., Any]] = {
        "xla": partial(attention, kernel="xla"),
        "definition": reference,
    }
    own = {"gpu": "cudnn", "tpu": "splash"}.get(options["platform"])
    if own:
        kernels = {own: partial(attention, kernel=own), **kernels}
    for case, reason in fitting(options["cases"], options, 20.0):
        if reason:
            yield {"what": str(case), "skipped": reason}
            continue
        try:
            posed = problem(case, options)
        except Exception as e:
            yield {"what": str(case), "error": one_line(e)}
            continue
        for name, kernel in kernels.items():
            yield {"what": f"{case}, {name}", **posed.timed(kernel)}


def splash_blocks(options: Mapping[str, Any]) -> Iterator[Row]:
    """Splash with blocks of each size; elsewhere than on a TPU it runs interpreted, to see that it does."""
    if options["platform"] == "gpu":
        yield {"skipped": "Splash is for TPUs"}
        return
    from neojax.kernels import splash
    from neojax.kernels.attention import fused

    tries = [
        (case, size) for case in options["cases"] for size in options["blocks"] if case.sequence % size == 0
    ]
    for (case, size), reason in fitting(tries, options, 10.0):
        what = f"{case}, splash in blocks of {size}"
        if size == splash.block(case.sequence, case.window):
            what += " (as chosen)"
        if reason:
            yield {"what": what, "skipped": reason}
            continue
        posed = problem(case, options)
        inner = partial(splash.attention, interpret=options["platform"] != "tpu", size=size)

        def kernel(q: Any, k: Any, v: Any, window: int | None, inner: Any = inner) -> Any:
            return fused(partial(inner, window=window), q, k, v)

        yield {"what": what, **posed.timed(kernel)}


@dataclass(frozen=True)
class Problem:
    """What every kernel is given for a case, and what it is to find."""

    case: Case
    layout: Any
    operands: tuple[Any, ...]
    """q, k, v and the result's cotangent, [batch, sequence, heads, head_dim]."""

    calls: int
    """How often a kernel is called in a round."""

    truth: Any = None
    """The definition's gradients and result, in float32."""

    def program(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The jitted gradients and result of one kernel."""
        import jax
        import jax.numpy as jnp

        from neojax.layout import named

        def total(q: Any, k: Any, v: Any, pull: Any) -> Any:
            with named.use_layout(self.layout):
                out = kernel(q, k, v, window=self.case.window)
            return jnp.sum((out * pull).astype(jnp.float32)), out

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))

    def timed(self, kernel: Callable[..., Any]) -> Row:
        """Seconds of a forward and backward pass, FLOP/s over the keys that queries see, and the error; or
        what went wrong, such as blocks that are too large for a chip."""
        try:
            return self.figures(kernel)
        except Exception as e:
            return {"error": one_line(e)}

    def figures(self, kernel: Callable[..., Any]) -> Row:
        """As `timed`, with errors raised."""
        import jax

        run = self.program(kernel)
        found = jax.block_until_ready(run(*self.operands))
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(self.truth), strict=True)
        worst = max(error(ours, theirs) for ours, theirs in pairs)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for _ in range(self.calls):
                found = run(*self.operands)
            jax.block_until_ready(found)
            seconds.append((time.perf_counter() - start) / self.calls)
        median = statistics.median(seconds)
        return {
            "seconds": median,
            "rounds": seconds,
            "model_flops_per_second": self.flops() / median,
            "relative_error": worst,
            "agrees": worst < WORST,
        }

    def flops(self) -> float:
        """FLOPs of a forward and backward pass over the keys that queries see."""
        from neojax.models.flops import visible_keys

        sequence, head_dim, window = self.case
        batch, _, heads, _ = self.operands[0].shape
        keys = visible_keys("local" if window else "global", sequence, window or sequence)
        return 3 * 4 * heads * head_dim * keys * batch * sequence


def problem(case: Case, options: Mapping[str, Any]) -> Problem:
    """A case with random bfloat16 operands on one device, solved by the definition in float32."""
    import jax
    import jax.numpy as jnp

    from neojax.kernels.attention import reference
    from neojax.layout.mesh import single_device

    layout = single_device()
    jax.set_mesh(layout.mesh)
    shape = (max(1, options["tokens"] // case.sequence), case.sequence, options["heads"], case.head_dim)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, pull = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    posed = Problem(case, layout, (q * case.head_dim**-0.5, k, v, pull), options["calls"])
    with jax.default_matmul_precision("highest"):
        truth = posed.program(reference)(*(x.astype(jnp.float32) for x in posed.operands))
        return replace(posed, truth=jax.block_until_ready(truth))


def error(ours: Any, theirs: Any) -> float:
    """norm(difference) / norm(theirs)."""
    import jax.numpy as jnp

    difference = ours.astype(jnp.float32) - theirs
    return float(jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(theirs.ravel()))


def conclude(rows: list[Row]) -> list[Row]:
    """The devices' own kernel against XLA's, and the fastest block size of every case."""
    found = {row["what"]: row for row in measured(rows, "seconds")}
    comparisons = []
    for what, row in found.items():
        case, _, kernel = what.rpartition(", ")
        if kernel in ("cudnn", "splash") and f"{case}, xla" in found:
            ratio = found[f"{case}, xla"]["seconds"] / row["seconds"]
            comparisons.append({"what": f"{what} against xla", "ratio": ratio})
    blocks: dict[str, list[tuple[float, str]]] = {}
    for what, row in found.items():
        if " in blocks of " in what:
            blocks.setdefault(what.partition(" in blocks of ")[0], []).append((row["seconds"], what))
    comparisons += [{"what": f"{case}: fastest", "is": min(tried)[1]} for case, tried in blocks.items()]
    return comparisons
