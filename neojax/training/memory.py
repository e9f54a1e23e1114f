"""Sizes that cannot be: what a run needs at the least, against the memory of its devices and of this machine.

Counted is what no compiler can save: parameters and optimizer state; the tokens of a batch; of the
activations, one layer's input and MLP for a microbatch; on the host, the batches read ahead. What passes may
still be too much; what would fit is never refused. Memory is all that the machine or container has, in use or
not.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neojax.config import Config, replaced, value_at
from neojax.data.share import Share
from neojax.errors import NeojaxError
from neojax.host_memory import host_memory
from neojax.layout.mesh import Layout
from neojax.models import Transformer
from neojax.models.compute import Compute, compute_type
from neojax.training.optimizer import make_optimizer
from neojax.training.state import abstract_state

TOKEN_BYTES = 8  # a token as input and as target, int32 each
SEGMENT_BYTES = 8  # its segment and its position, where documents are isolated, or its type, in pairs

# The keys that may be too large: (key, least value, usual value).
SIZES = (
    ("train.batch_size", 1, 8),
    ("train.microbatch", 1, 8),
    ("data.prefetch", 1, 8),
    ("model.n_layer", 1, 12),
    ("model.n_embd", 1, 768),
    ("model.n_ctx", 1, 2048),
    ("model.n_vocab", 2, 50257),
    ("model.mlp.width", 1, 3072),
    ("model.experts.number", 1, 8),
    ("model.attention.memory_slots", 0, 16),
)


@dataclass(frozen=True)
class Memory:
    """Bytes, of one device and of one process's host; None where a device does not tell, or shares the
    host's."""

    device: int | None
    host: int | None

    def holds(self, need: "Memory") -> bool:
        pairs = (self.device, need.device), (self.host, need.host)
        return all(has is None or wants is None or wants <= has for has, wants in pairs)


def check_memory(config: Config, layout: Layout) -> None:
    """Raises `NeojaxError`, which names the key to lower and what may fit, where `config` cannot fit on
    `layout`.

    A mesh whose devices are not here is not asked.
    """
    if not isinstance(layout.mesh, jax.sharding.Mesh):
        return
    has, need = available(layout), needed(config, layout)
    if has.holds(need):
        return
    if has.device is not None and need.device is not None and need.device > has.device:
        what = f"{_bytes(need.device)} of each device's memory, which has {_bytes(has.device)}"
        more = ", or spread the run over more devices"
    else:
        what, more = f"{_bytes(need.host)} of this machine's memory, which has {_bytes(has.host)}", ""
    excess, cause = max(_remedies(config, layout, has), default=(0, ""))
    if not excess:
        cause = "lower " + ", ".join(f"{key}={value_at(config, key)}" for key, *_ in SIZES)
    raise NeojaxError(f"the run needs at least {what}: {cause}{more}")


def needed(config: Config, layout: Layout) -> Memory:
    """What a run of `config` needs at the least on one device of `layout`, and of this process's host."""
    model, train = config.model, config.train
    compute = Compute(dtype=compute_type(train.precision, layout))
    abstract = Transformer(model, layout, compute, train.lora)
    with jax.set_mesh(layout.mesh):  # type: ignore[arg-type]
        state = abstract_state(abstract, make_optimizer(train, abstract.dims(), depths=abstract.depths()))
    held = sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(state))
    tokens = model.n_ctx / layout.split("sequence") / layout.split("batch")
    widths = model.n_embd / layout.split("embd")
    if not all(model.expert_layers):
        widths += model.mlp_dim / layout.split("mlp")
    activations = (
        (train.microbatch or train.batch_size) * tokens * widths * jnp.dtype(abstract.compute.dtype).itemsize
    )
    each = TOKEN_BYTES + (
        SEGMENT_BYTES
        if config.data.isolate_documents or config.data.pairs != "none" or config.data.task != "none"
        else 0
    )
    device = math.floor(held + train.batch_size * tokens * each + activations)
    parts = layout.split("batch")
    rows = train.batch_size * len(Share(layout, parts).held) / parts
    host = math.floor(config.data.prefetch * rows * model.n_ctx * each)
    if layout.platform == "cpu":
        return Memory(None, host + device * len(_local(layout)))
    return Memory(device, host)


def available(layout: Layout) -> Memory:
    """What one device of `layout`, and this machine, have in all."""
    device = None
    if layout.platform != "cpu":
        stats = [d.memory_stats() or {} for d in _local(layout)]
        device = min((s["bytes_limit"] for s in stats if "bytes_limit" in s), default=None)
    return Memory(device, host_memory())


def _remedies(config: Config, layout: Layout, has: Memory) -> Iterator[tuple[float, str]]:
    """For every key that alone can be lowered until the run fits: (how many times the usual it is, what to
    say)."""
    for key, least, usual in SIZES:
        value, step = value_at(config, key), _step(config, layout, key)

        def fits(multiple: int, key: str = key, step: int = step) -> bool:
            try:
                return has.holds(needed(replaced(config, key, multiple * step), layout))
            except NeojaxError:  # it does not go with the others
                return False

        low, high = -(-least // step), (value or 0) // step
        if low >= high or not fits(low):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        yield value / usual, f"{key}={value}; it may be up to {low * step:,} here"


def _step(config: Config, layout: Layout, key: str) -> int:
    """What a value of `key` is to be a multiple of."""
    model = config.model
    match key:
        case "train.batch_size":
            return config.train.microbatch or layout.split("batch")
        case "train.microbatch":
            return layout.split("batch")
        case "model.n_layer":
            return len(model.attention.types)
        case "model.n_embd":
            return math.lcm(2 * model.attention.heads, *_splits(layout, "embd", "heads", "mlp"))
        case "model.experts.number":
            return math.lcm(*_splits(layout, "experts"))
        case "model.mlp.width":
            return math.lcm(*_splits(layout, "mlp"))
        case "model.attention.memory_slots":
            return math.lcm(*_splits(layout, "memory_slots"))
        case "model.n_ctx":
            return math.lcm(*_splits(layout, "sequence", "memory_length", "positions"))
    return 1


def _splits(layout: Layout, *dims: str) -> list[int]:
    return [layout.split(dim, stored=stored) for dim in dims for stored in (False, True)]


def _local(layout: Layout) -> Sequence[jax.Device]:
    assert isinstance(layout.mesh, jax.sharding.Mesh)
    return list(layout.mesh.local_devices)


def _shard_bytes(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def _bytes(count: float | None) -> str:
    count = count or 0
    power = min(5, int(math.log10(max(count, 1))) // 3)
    return f"{count / 1000**power:,.3g} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"
