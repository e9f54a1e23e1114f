"""Whether a model, its batches and what it computes can be laid out as a config says, before anything is
made."""

import jax
import jax.numpy as jnp

from neojax.config import ModelConfig, TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import BATCH_DIMS
from neojax.layout.names import DIMENSIONS
from neojax.models import Transformer
from neojax.models.experts import check_groups
from neojax.models.pipeline import check_microbatches


def check_fit(model: Transformer, train: TrainConfig) -> None:
    """Raises `NeojaxError` where the layout of `model` does not fit its parameters, a microbatch or
    activations.

    The devices of the layout's mesh need not be here.
    """
    check_microbatches(train, model.layout)
    shape = (train.microbatch or train.batch_size, model.config.n_ctx)
    model.layout.spec(BATCH_DIMS, (1, *shape), what=f"a microbatch of {shape[0]} sequences")
    check_groups(model.config, model.layout, [model.config.n_ctx])
    reported(model, *shape)


def without_effect(model: Transformer) -> tuple[str, list[str]]:
    """What the layout says that has no effect, since `model` lacks the dimension: why an axis that has such
    names alone, so that its devices would all do the same, cannot be meant, or an empty text; and a line on
    each axis that no name is laid over, and on the other names that are of no tensor."""
    layout, dims = model.layout, model.dims()
    has = {"batch", "sequence", *(dim for own in dims.values() for dim in own)}
    if set(model.config.attention_layers) - {"none"}:
        has.add("memory_length")
    over: dict[str, list[str]] = {}
    for said in (layout.used, layout.stored):
        for dim, axes in said.items():
            for axis in axes:
                over.setdefault(axis, []).append(dim)
    many = [axis for axis, size in layout.mesh.shape.items() if size > 1]
    parts = layout.mesh.shape
    lacks = "which this model does not have"
    idle = next((axis for axis in many if axis in over and not has & set(over[axis])), None)
    if idle:
        fitting = ", ".join(name for name in DIMENSIONS if name in has)
        return (
            f"the layout gives axis {idle} ({parts[idle]} parts) {_joined(over[idle])} alone, {lacks}, so "
            f"that they would all do the same; split one of {fitting} over it, or take it out of mesh.shape",
            [],
        )
    names = [dim for axis in many for dim in over.get(axis, ()) if dim not in has]
    lines = [f"the layout splits {_joined(names)}, {lacks}: nothing is split by that"] if names else []
    lines += [
        f"mesh.shape has axis {axis}, over which nothing is split: its {parts[axis]} parts do the same"
        for axis in many
        if axis not in over
    ]
    return "", lines


def _joined(names: list[str]) -> str:
    return " and ".join(dict.fromkeys(names))


def reported(model: Transformer, rows: int, length: int) -> list[str]:
    """The names of the numbers that `model` reports of a batch of so many rows, `loss` among them; what is
    said of every layer apart is not."""
    batch = example(model.config, rows, length)
    losses = jax.eval_shape(lambda p, batch: model.bind(p).loss(batch), model.stored(), batch)
    return [name for name, (total, _) in losses.sums.items() if not total.shape]


def example(config: ModelConfig, rows: int, length: int) -> Batch:
    """A batch of shapes and types, with the labels that the heads of `config` take."""

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    kind = next((kind for kind in config.head.kinds if kind not in ("lm", "mlm", "token_classification")), "")
    tokens = ids(rows, 2, length) if kind == "multiple_choice" else ids(rows, length)
    labels = ids(rows, 2) if kind == "question_answering" else ids(rows)
    if kind == "sequence_classification" and len(config.head.labels) == 1:
        labels = jax.ShapeDtypeStruct((rows,), jnp.float32)
    return Batch(tokens, tokens, labels=labels if kind else None)
