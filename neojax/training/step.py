"""The training step and the evaluation step: each one jitted function over the whole mesh."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import Share
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.models.losses import at_least_some
from neojax.models.pipeline_loss import loss_of_microbatches
from neojax.training.compiler import compiler_options, deterministic_options
from neojax.training.mlm import mask_tokens
from neojax.training.optimizer import Optimizer, taken
from neojax.training.schedule import learning_rate
from neojax.training.state import State

MASKS = 1 << 30  # sets the random bits of masked tokens apart from those of dropout


def make_train_step(
    model: Transformer, optimizer: Optimizer, train: TrainConfig
) -> Callable[[State, Batch, Any], tuple[State, dict[str, jax.Array]]]:
    """The jitted step (state, batch, step) -> (state, metrics); the state is donated.

    Its batch is [microbatches, batch, sequence]. Gradients of what is trained are summed over microbatches
    and divided by the number of scored tokens in all of them, those of further heads by what they score
    (`Losses.total`), so the step equals that of the whole batch.
    Where the loss or the gradients' norm is not finite, the state comes back as it was, the place in the
    schedule included. `step` (int32 scalar, 0 for the first) seeds dropout and masks. Metrics, float32
    scalars: loss (nats per token), grad_norm (before clipping), learning_rate, and the mean of whatever else
    the model reports, which may be a matrix. Raises `NeojaxError` for train.compiler_options that the
    compiler does not take.
    """
    options = compiler_options(model.layout, train.compiler_options, train.deterministic)
    return jax.jit(plain_train_step(model, optimizer, train), donate_argnums=0, compiler_options=options)


def plain_train_step(
    model: Transformer, optimizer: Optimizer, train: TrainConfig
) -> Callable[[State, Batch, Any], tuple[State, dict[str, jax.Array]]]:
    """The step of `make_train_step` as a function that is not compiled, which asks nothing of devices."""
    rate = learning_rate(train)
    config = model.config
    rates = config.embedding.dropout, config.attention.dropout, config.dropout, config.head.dropout
    draws = any(rates) or (model.adapters is not None and model.adapters.lora.dropout > 0)
    draws |= config.experts.number > 0  # experts tell by the key that they are trained

    def key_of(step, index):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(train.seed), step), index)

    def objective(trained, frozen, batch, index, step, scored):
        own, entmax = model.bind({**trained, **frozen}), train.loss == "entmax"
        if index is None:
            keys = jax.vmap(partial(key_of, step))(jnp.arange(len(batch.tokens))) if draws else None
            losses = loss_of_microbatches(own, batch, z_loss=train.z_loss, entmax=entmax, dropout_keys=keys)
        else:
            key = key_of(step, index) if draws else None
            losses = own.loss(batch, z_loss=train.z_loss, entmax=entmax, dropout_key=key)
        return losses.total(scored), losses.sums

    grad = jax.value_and_grad(objective, has_aux=True)

    def gradients(trained, frozen, batch, step, scored):
        """Summed gradients of what is trained, and sums to report, over the microbatches."""
        if model.is_pipeline:
            (_, sums), grads = grad(trained, frozen, batch, None, step, scored)
            return grads, sums

        def micro_grad(index, micro):
            (_, sums), grads = grad(trained, frozen, micro, index, step, scored)
            return grads, sums

        count = batch.tokens.shape[0]
        first = jax.tree.map(lambda x: x[0], batch)
        if count == 1:
            return micro_grad(0, first)

        def accumulate(carry, indexed):
            return jax.tree.map(jnp.add, carry, micro_grad(*indexed)), None

        _, sums = jax.eval_shape(micro_grad, 0, first)
        zeros = (
            jax.tree.map(jnp.zeros_like, trained),
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums),
        )
        return jax.lax.scan(accumulate, zeros, (jnp.arange(count), batch))[0]

    def train_step(state: State, batch: Batch, step: Any):
        if train.mlm_mask_id is not None:
            key = jax.random.fold_in(jax.random.key(train.seed), step)
            batch = mask_tokens(
                batch, jax.random.fold_in(key, MASKS), train, model.config.n_vocab, model.layout
            )
        counts = model.scored(batch)
        scored = at_least_some(counts["loss"])
        grads, sums = gradients(state.trained, state.frozen, batch, step, counts)
        metrics = {name: total / at_least_some(count) for name, (total, count) in sums.items()}
        loss = sums["loss"][0] / scored
        trained, opt_state, norm = optimizer.update(grads, state.opt_state, state.trained, scored, loss)
        metrics |= {"loss": loss, "grad_norm": norm, "learning_rate": rate(taken(state.opt_state))}
        return State(trained, state.frozen, opt_state), metrics

    return train_step


def make_eval_step(
    model: Transformer, train: TrainConfig | None = None
) -> Callable[[Mapping[str, jax.Array], Batch], Any]:
    """The jitted function (params, batch) -> (sum, count) by name, as the model reports them, over a batch of
    [1, batch, sequence].

    `train` says which loss, and whether it is of masked tokens; these are at the same places at every
    evaluation.
    """
    train = train or TrainConfig()

    def eval_step(params, batch):
        if train.mlm_mask_id is not None:
            key = jax.random.fold_in(jax.random.key(train.seed), MASKS)
            batch = mask_tokens(batch, key, train, model.config.n_vocab, model.layout)
        rows = jax.tree.map(lambda x: x[0], batch)
        return model.bind(params).loss(rows, entmax=train.loss == "entmax").sums

    options = deterministic_options(model.layout) if train.deterministic else {}
    return jax.jit(eval_step, compiler_options=options)


def make_answer_step(
    model: Transformer, train: TrainConfig
) -> Callable[[Mapping[str, jax.Array], Batch], tuple[Any, jax.Array]]:
    """As `make_eval_step`, with the logits of the first head too: (params, batch) -> (sums, float32 [batch,
    ...])."""

    def answer_step(params, batch):
        rows = jax.tree.map(lambda x: x[0], batch)
        return model.bind(params).answered(rows)

    options = deterministic_options(model.layout) if train.deterministic else {}
    return jax.jit(answer_step, compiler_options=options)


def evaluate(
    eval_step: Callable, params: Mapping[str, jax.Array], batches: Iterator[Batch], share: Share
) -> tuple[dict[str, float], float]:
    """The means over `batches` of what the model reports, "loss" in nats per token among them, and the number
    of tokens scored, or the sum of their weights. Raises `NeojaxError` if there are none."""
    totals: dict[str, list[Any]] = {}
    for batch in batches:
        for name, (value, count) in eval_step(params, share.place(batch)).items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] = total[0] + np.asarray(value, np.float64)
            total[1] = total[1] + np.asarray(count, np.float64)
    scored = float(totals.get("loss", [0.0, 0.0])[1])
    if not scored:
        raise NeojaxError("the evaluation data holds no token to score")
    return {
        n: np.divide(value, count).tolist() for n, (value, count) in totals.items() if np.all(count)
    }, scored
