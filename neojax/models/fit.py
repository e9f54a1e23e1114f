"""Whether a model, its batches and what it computes can be laid out as a config says, before anything is
made."""

import jax
import jax.numpy as jnp

from neojax.config import ModelConfig, TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import BATCH_DIMS
from neojax.models import Transformer
from neojax.models.pipeline import check_microbatches


def check_fit(model: Transformer, train: TrainConfig) -> None:
    """Raises `NeojaxError` where the layout of `model` does not fit its parameters, a microbatch or
    activations.

    The devices of the layout's mesh need not be here.
    """
    check_microbatches(train, model.layout)
    shape = (train.microbatch or train.batch_size, model.config.n_ctx)
    model.layout.spec(BATCH_DIMS, (1, *shape), what=f"a microbatch of {shape[0]} sequences")
    reported(model, *shape)


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
