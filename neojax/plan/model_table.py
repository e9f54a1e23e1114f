"""What a model is made of, as a table: every parameter, its layout and size, and what training it costs."""

import math

import jax
from rich.console import Console
from rich.table import Table

from neojax.config import Config
from neojax.layout.devices import shape_text
from neojax.layout.mesh import Layout, abstract_layout
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.models.fit import check_fit, without_effect
from neojax.models.flops import flops_per_token
from neojax.models.pipeline import describe
from neojax.models.selection import not_trained

MOMENT_BYTES = {"float32": 4, "bfloat16": 2}


def print_model(config: Config, layout: Layout | None = None) -> None:
    """Every parameter: dimension names, shape, layout, bytes per device; then totals and model FLOPs.

    layout: default that of the configuration, over devices that need not be here. Raises `NeojaxError` where
    the model, a microbatch or what is computed cannot be laid out so, or `train.frozen` or `train.lora` does
    not fit it.
    """
    compute = Compute(remat=config.train.remat, rounds=config.train.pipeline_rounds)
    model = Transformer(config.model, layout or abstract_layout(config.mesh), compute, config.train.lora)
    layout = model.layout  # in which kv_heads are split as heads
    dims, stored = model.dims(), model.stored()
    check_fit(model, config.train)
    frozen = not_trained(config.train, dims)
    lora = config.train.lora
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("parameter", "dimensions", "shape", "used as", "stored as"):
        table.add_column(title, no_wrap=True)
    table.add_column("bytes/device", justify="right", no_wrap=True)
    count = active = trained = held = held_trained = 0
    for name, value in stored.items():
        bytes_held = sum(
            math.prod(part.sharding.shard_shape(part.shape)) * part.dtype.itemsize
            for part in jax.tree.leaves(value)
        )
        true_shape = [config.model.n_vocab if d == "vocab" else n for d, n in zip(dims[name], value.shape)]
        count += math.prod(true_shape)
        used = [config.model.experts.top_k if d == "experts" else n for d, n in zip(dims[name], true_shape)]
        active += math.prod(used)
        held += bytes_held
        if name not in frozen:
            trained += math.prod(true_shape)
            held_trained += bytes_held
        split = [
            " ".join(f"{d}:{'+'.join(axes)}" for d in dims[name] if (axes := layout.axes(d, stored=s)))
            or "whole"
            for s in (False, True)
        ]
        shape = " ".join(map(str, value.shape))
        table.add_row(name, " ".join(dims[name]), shape, *split, f"{bytes_held:,}")
    Console(width=None if Console().is_terminal else 200, soft_wrap=True).print(table)
    mesh = shape_text(layout.mesh.shape)
    padding = stored["wte"].shape[0] - config.model.n_vocab
    flops = flops_per_token(config.model)
    print(
        f"\n{count:,} parameters"
        + (f", {active:,} of them used by a token" if active < count else "")
        + (f", {trained:,} of them trained" if frozen else "")
        + (f" (and {padding} rows of vocabulary padding)" if padding else "")
    )
    kept = f"parameters, frozen matrices in {lora.base}" if lora.rank else "float32 parameters"
    print(f"mesh {mesh}: {layout.mesh.size} device(s); each stores {held:,} bytes of {kept}", end="")
    # Two moments of each trained parameter, the second in float32; Adafactor's factors are next to nothing.
    adam = held_trained // 4 * (MOMENT_BYTES[config.train.moment_dtype] + 4)
    mean = held_trained * (config.train.adafactor_momentum > 0)
    state = mean if config.train.optimizer == "adafactor" else adam
    print(f" and {state:,} of {config.train.optimizer} state" if state else "")
    idle, lines = without_effect(model)
    for line in filter(None, (idle, *lines)):
        print(line)
    if schedule := model.schedule(config.train.microbatches):
        print(describe(schedule))
    what = "3 x forward, attention to visible keys only" + (", as if all were trained" if frozen else "")
    print(f"{flops:,.0f} model FLOPs per trained token ({what})")
    print(f"{flops * config.model.n_ctx * config.train.batch_size:,.0f} model FLOPs per step")
