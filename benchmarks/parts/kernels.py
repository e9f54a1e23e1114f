"""Attention kernels: the devices' own against XLA's and against the definition: values, gradients, time; block sizes.

Operands are bfloat16. Errors are those of the result and of the three gradients, the largest of norm(difference) /
norm(reference), the reference being float32 with full products; XLA's own kernel in bfloat16 is the yardstick.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from jobs import Job, Row, fitting, one_line

from parts import ROUNDS, Chip, measured

CASES = [  # sequence, head_dim, window (None: all before)
    (2048, 128, None),
    (2048, 128, 256),
    (2048, 64, None),
    (2048, 64, 256),
    (8192, 128, None),
    (8192, 128, 256),
]
BLOCKS = (128, 256, 512, 1024, 2048)
HEADS, TOKENS = 16, 16384
WORST = 0.02  # relative error that bfloat16 operands and results do not explain


def jobs(chip: Chip, tiny: bool) -> list[Job]:
    """Own kernel, XLA's and the definition for every case; then Splash's block sizes on TPUs."""
    common = {"platform": chip["platform"], "cases": CASES, "heads": HEADS, "tokens": TOKENS, "calls": 20}
    if tiny:
        common |= {"cases": [(160, 16, None), (160, 16, 50)], "heads": 2, "tokens": 320, "calls": 1}
    sizes = {**common, "cases": [(128, 16, 50)] if tiny else CASES, "blocks": BLOCKS[:1] if tiny else BLOCKS}
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
        what = name_of(case)
        if reason:
            yield {"what": what, "skipped": reason}
            continue
        try:
            operands, layout, truth = problem(case, options)
        except Exception as e:
            yield {"what": what, "error": one_line(e)}
            continue
        for name, kernel in kernels.items():
            yield {"what": f"{what}, {name}", **timed(kernel, case, operands, layout, truth, options)}


def splash_blocks(options: Mapping[str, Any]) -> Iterator[Row]:
    """Splash with blocks of each size; elsewhere than on a TPU it runs interpreted, to see that it does."""
    if options["platform"] == "gpu":
        yield {"skipped": "Splash is for TPUs"}
        return
    from neojax.kernels import splash
    from neojax.kernels.attention import fused

    tries = [(case, size) for case in options["cases"] for size in options["blocks"] if case[0] % size == 0]
    for (case, size), reason in fitting(tries, options, 10.0):
        what = f"{name_of(case)}, splash in blocks of {size}"
        if size == splash.block(case[0], case[2]):
            what += " (as chosen)"
        if reason:
            yield {"what": what, "skipped": reason}
            continue
        operands, layout, truth = problem(case, options)
        inner = partial(splash.attention, interpret=options["platform"] != "tpu", size=size)

        def kernel(q: Any, k: Any, v: Any, window: int | None, inner: Any = inner) -> Any:
            return fused(partial(inner, window=window), q, k, v)

        yield {"what": what, **timed(kernel, case, operands, layout, truth, options)}


def problem(
    case: tuple[int, int, int | None], options: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Any, Any]:
    """Operands, their layout, and the gradients and result of the definition in float32."""
    import jax

    from neojax.kernels.attention import reference

    operands, layout = operands_of(case, options)
    with jax.default_matmul_precision("highest"):
        truth = program(reference, case, layout)(*(x.astype("float32") for x in operands))
        return operands, layout, jax.block_until_ready(truth)


def name_of(case: tuple[int, int, int | None]) -> str:
    """A case in words."""
    sequence, head_dim, window = case
    return f"sequence {sequence}, head_dim {head_dim}, {f'window {window}' if window else 'global'}"


def operands_of(case: tuple[int, int, int | None], options: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """q, k, v and the result's cotangent, bfloat16 [batch, sequence, heads, head_dim], on one device, and its layout."""
    import jax
    import jax.numpy as jnp

    from neojax.layout.mesh import single_device

    sequence, head_dim, _ = case
    layout = single_device()
    jax.set_mesh(layout.mesh)
    shape = (max(1, options["tokens"] // sequence), sequence, options["heads"], head_dim)
    q, k, v, pull = (
        jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4)
    )
    return (q * head_dim**-0.5, k, v, pull), layout


def program(kernel: Callable[..., Any], case: tuple[int, int, int | None], layout: Any) -> Callable[..., Any]:
    """The jitted result and gradients of one kernel."""
    import jax
    import jax.numpy as jnp

    from neojax.layout import named

    def total(q: Any, k: Any, v: Any, pull: Any) -> Any:
        with named.use_layout(layout):
            out = kernel(q, k, v, window=case[2])
        return jnp.sum((out * pull).astype(jnp.float32)), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))


def timed(
    kernel: Callable[..., Any],
    case: tuple[int, int, int | None],
    operands: tuple[Any, ...],
    layout: Any,
    truth: Any,
    options: Mapping[str, Any],
) -> Row:
    """Seconds of a forward and backward pass, FLOP/s over the keys that queries see, and the error; or what went wrong,
    such as blocks that are too large for a chip."""
    try:
        return figures(kernel, case, operands, layout, truth, options)
    except Exception as e:
        return {"error": one_line(e)}


def figures(
    kernel: Callable[..., Any],
    case: tuple[int, int, int | None],
    operands: tuple[Any, ...],
    layout: Any,
    truth: Any,
    options: Mapping[str, Any],
) -> Row:
    """As `timed`, with errors raised."""
    import jax
    import jax.numpy as jnp

    from neojax.models.flops import visible_keys

    run = program(kernel, case, layout)
    found = jax.block_until_ready(run(*operands))

    def error(ours: Any, theirs: Any) -> float:
        difference = ours.astype(jnp.float32) - theirs
        return float(jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(theirs.ravel()))

    worst = max(error(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True))
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(options["calls"]):
            found = run(*operands)
        jax.block_until_ready(found)
        seconds.append((time.perf_counter() - start) / options["calls"])
    sequence, head_dim, window = case
    keys = visible_keys("local" if window else "global", sequence, window or sequence)
    tokens = operands[0].shape[0] * sequence
    flops = 3 * 4 * options["heads"] * head_dim * keys * tokens
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "rounds": seconds,
        "model_flops_per_second": flops / median,
        "relative_error": worst,
        "agrees": worst < WORST,
    }


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
