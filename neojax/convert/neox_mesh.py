"""The mesh of a GPT-NeoX config, and its batch, which GPT-NeoX names by the GPU.

model_parallel_size is an axis `model` over which heads, the MLP and the vocabulary are split, as GPT-NeoX
splits them; pipe_parallel_size is an axis `stage` over which layers are split, and the vocabulary too, so
that stages share the ends of the model; all other devices are the axis `data`. ZeRO of any stage stores
parameters and optimizer state in parts over `data`: stages 1 and 2 split the second alone.
"""

import math
from functools import partial

from neojax.convert.keys import Conversion
from neojax.convert.neox_files import NeoxKeys
from neojax.errors import NeojaxError
from neojax.layout.names import parse_shape


def convert_mesh(keys: NeoxKeys, out: Conversion) -> None:
    """The section `mesh`."""
    ranks = keys.count("model_parallel_size", 1, least=1)
    stages = keys.count("pipe_parallel_size", 0)
    own = {axis: size for axis, size in (("stage", stages), ("model", ranks)) if size > 1}
    why = "model_parallel_size, pipe_parallel_size"
    out.put("mesh.shape", lambda: ", ".join(["data:-1", *(f"{a}:{n}" for a, n in own.items())]), why)
    axes = _axes(out)
    split = {"batch": ["data"], "layers": ["stage"], "heads": ["model"], "mlp": ["model"]}
    split["vocab"] = ["model", "stage"]
    used = {"data", *own} if axes is None else {"data", *own} & axes.keys()
    kept = {dim: [axis for axis in over if axis in used] for dim, over in split.items()}
    rules = [f"{dim}:{'+'.join(over)}" for dim, over in kept.items() if over]
    out.put("mesh.layout", lambda: ", ".join(rules), why)
    stage = keys.count("zero_optimization.stage", 0)
    is_split = stage > 0 and (axes is None or "data" in axes)
    out.put("mesh.param_layout", lambda: "embd:data" if is_split else None, "zero_optimization.stage")


def _axes(out: Conversion) -> dict[str, int] | None:
    """The axes of the mesh that there will be; None for one that is none, which is refused where it is
    used."""
    try:
        return parse_shape(str(out.get("mesh.shape")))
    except NeojaxError:
        return None


def convert_batch(keys: NeoxKeys, out: Conversion, asks: bool) -> None:
    """train.batch_size and train.microbatch. Where nothing says how many GPUs there are, that is an error if
    `asks`, and else the batch is that of one.

    train_batch_size = train_micro_batch_size_per_gpu * gradient_accumulation_steps * GPUs /
    (pipe_parallel_size * model_parallel_size).
    """
    own = keys.count("train_micro_batch_size_per_gpu", least=1)
    turns = keys.count("gradient_accumulation_steps", least=1)
    whole, replicas = keys.count("train_batch_size", least=1), _replicas(keys, out)
    is_theirs = not any(map(out.is_given, ("mesh.shape", "mesh.cpu_devices", "train.batch_size")))
    if is_theirs and own and replicas and whole:
        rows = own * replicas
        if whole != rows * (turns or max(1, whole // rows)):
            parts = f"{own} x {turns or 'a whole number'} x {replicas}"
            raise keys.error(
                "train_batch_size", f"{whole} is not {parts} (rows of a GPU x accumulation x replicas)"
            )
    out.put(
        "train.batch_size", partial(_batch_size, keys, asks, own, turns, whole, replicas), "batch of all GPUs"
    )
    batch = out.count("train.batch_size", 1)
    if turns is None and whole and own and replicas:
        turns = whole // (own * replicas)
    turns = turns or 1
    if turns > 1 and batch % (turns * (own or 1)):
        rows = f"{turns} times {own} sequences for each replica" if own else f"{turns} parts"
        out.note("train.microbatch", f"no accumulation: a batch of {batch} is not {rows}")
        return
    out.put("train.microbatch", lambda: batch // turns if turns > 1 else None, "gradient_accumulation_steps")


def _replicas(keys: NeoxKeys, out: Conversion) -> int | None:
    """The parts that a batch is split into; None where nothing says how many devices there are."""
    tensor = keys.count("model_parallel_size", 1, least=1)
    stages = max(1, keys.count("pipe_parallel_size", 0))
    axes = _axes(out) if out.is_given("mesh.shape") else None
    if axes and -1 not in axes.values():
        return math.prod(axes.values()) // (axes.get("model", 1) * axes.get("stage", 1))
    if simulated := out.count("mesh.cpu_devices", 0):
        own = axes or {"model": tensor, "stage": stages}
        return max(1, simulated // (own.get("model", 1) * own.get("stage", 1)))
    gpus = keys.count("global_num_gpus", 0)
    nodes, each = keys.number("num_nodes", 0, least=-1), keys.count("num_gpus", 0)
    gpus = gpus or max(0, int(nodes)) * each
    return max(1, gpus // (tensor * stages)) if gpus else None


def _batch_size(
    keys: NeoxKeys, asks: bool, own: int | None, turns: int | None, whole: int | None, replicas: int | None
) -> int:
    if whole:
        return whole
    if not own:
        if not asks:
            return 1
        raise NeojaxError(
            f"{keys.path}: neither train_micro_batch_size_per_gpu nor train_batch_size is given; give "
            "train.batch_size=N"
        )
    if not replicas and asks:
        raise keys.error(
            "train_micro_batch_size_per_gpu",
            f"{own} sequences a GPU, and nothing says how many GPUs; give train.batch_size=N, the sequences "
            f"of a step ({own * (turns or 1)} for each replica of the model), or global_num_gpus in a file",
        )
    return own * (turns or 1) * (replicas or 1)
