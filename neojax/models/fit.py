"""Whether a model, its batches and what it computes can be laid out as a config says, before anything is
made."""

import jax
import jax.numpy as jnp

from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import BATCH_DIMS
from neojax.models import Transformer


def check_fit(model: Transformer, train: TrainConfig) -> None:
    """Raises `NeojaxError` where the layout of `model` does not fit its parameters, a microbatch or
    activations.

    The devices of the layout's mesh need not be here.
    """
    stored = model.stored()
    shape = (train.microbatch or train.batch_size, model.config.n_ctx)
    model.layout.spec(BATCH_DIMS, (1, *shape), what=f"a microbatch of {shape[0]} sequences")
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    jax.eval_shape(lambda p, t: model.bind(p).loss(Batch(t, t)), stored, tokens)
