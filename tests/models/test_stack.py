"""The stack: the orders of norm and branch, and what blocks report beside their activations."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, noisy, random_tokens, tiny
from jax.flatten_util import ravel_pytree

from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.layout import named
from neojax.models import Transformer, transformer
from neojax.models.block import Block
from neojax.models.compute import Compute, turns
from neojax.models.context import Context
from neojax.models.embedding import Embedding
from neojax.models.families import Family
from neojax.models.head import LanguageHead
from neojax.models.stack import Stack
from neojax.training.optimizer import make_optimizer
from neojax.training.state import init_state
from neojax.training.step import make_train_step

TOKENS = random_tokens(4)
BATCH = Batch(TOKENS[:, :-1], TOKENS[:, 1:])


def by_definition(order, block, kind, x):
    """A block's output as the papers write it."""

    def attention(x):
        return block.attn(x, kind, Context(), None, None)[0]

    if order == "post":
        x = block.norm_1(x + attention(x))
        return block.norm_2(x + block.mlp(x))
    if order == "pre":
        x = x + attention(block.norm_1(x))
        return x + block.mlp(block.norm_2(x))
    second = block.norm_1 if order == "parallel_shared" else block.norm_2
    return x + attention(block.norm_1(x)) + block.mlp(second(x))


@pytest.mark.parametrize("mesh", ["data:1", "data:2, model:2"])
@pytest.mark.parametrize("order", ["pre", "post", "parallel", "parallel_shared"])
def test_a_block_is_what_its_order_says(order, mesh):
    config = tiny(n_layer=2, **{"norm.order": order})
    layout = layout_of(mesh, "batch:data" + (", heads:model, mlp:model" if "model" in mesh else ""))
    model = noisy(config, layout)

    @jax.jit
    def by_hand(model):
        with model.names_in_force():
            x = model.embedding(named.lay(TOKENS, "batch sequence"), Context(), None)
            own = jax.tree.map(lambda a: a[0], model.stack.blocks)  # two kinds: one repetition of either
            for block, kind in zip(own, model.stack.runs[0].turn):
                x = by_definition(order, block, kind, x)
            return model.head.norm_f(x)

    with jax.set_mesh(layout.mesh):
        hidden = jax.jit(lambda model: model.hidden(TOKENS)[0])(model)
        np.testing.assert_allclose(hidden, by_hand(model), atol=1e-5, rtol=1e-5)
    names = set(model.params())
    assert ("blocks.0.norm_2.scale" in names) == (order != "parallel_shared")


def test_orders_differ():
    logits = [
        noisy(tiny(n_layer=2, **{"norm.order": order}))(TOKENS) for order in ("pre", "post", "parallel")
    ]
    assert all(np.abs(a - b).max() > 1e-2 for a, b in itertools.pairwise(logits))


@pytest.mark.parametrize("order", ["post", "parallel", "parallel_shared"])
def test_every_order_decodes_with_the_cache(order):
    import neojax

    model = noisy(tiny(**{"norm.order": order}))
    prompt = TOKENS[0, :9].tolist()
    found = neojax.generate(model, prompt, max_new_tokens=8, temperature=0, eos=())
    text = list(prompt)
    for _ in range(8):
        text.append(int(np.argmax(model(np.array([text], np.int32))[0, -1])))
    assert found == text[len(prompt) :]


class Reporting(Block):
    """A block that reports the sum of its squared activations, and lets it train."""

    def __call__(self, x, kind, context, cache, dropout_key):
        x, cache, _ = super().__call__(x, kind, context, cache, dropout_key)
        squares, count = jnp.sum(x.astype(jnp.float32) ** 2), jnp.float32(x.size)
        return x, cache, {"objective": (1e-3 * squares, count), "square": (squares, count)}


@pytest.fixture
def reports(monkeypatch):
    def build(config, sizes, compute):
        stack = Stack(
            lambda kinds, sizes: Reporting(config, kinds, sizes, compute),
            config.attention_layers,
            sizes,
            compute,
        )
        return Embedding(config, sizes, compute), stack, LanguageHead(config, sizes)

    monkeypatch.setattr(transformer, "family", lambda name: Family(build))


@pytest.mark.parametrize(
    "compute", [Compute(), Compute(unroll=0), Compute(remat="full"), Compute(remat="names")], ids=str
)
def test_what_blocks_report_is_added_up_over_layers_and_trains(reports, compute):
    scanned, flat = (Transformer(tiny(), compute=c) for c in (compute, Compute(stacked=False)))
    weights = noisy_params(scanned)
    own = {
        f"blocks.{layer}.{role}": weights[f"blocks.{layer % 2}.{role}"][layer // 2]
        for layer in range(4)
        for role in (n.split(".", 2)[2] for n in weights if n.startswith("blocks.0."))
    }
    own |= {name: value for name, value in weights.items() if not name.startswith("blocks")}

    def of(model):
        return jax.jit(
            jax.value_and_grad(
                lambda p: (lambda losses: (losses.objective, losses))(model.bind(p).loss(BATCH)), has_aux=True
            )
        )

    (objective, losses), grads = of(scanned)(weights)
    (other, others), other_grads = of(flat)(own)
    np.testing.assert_allclose(objective, other, rtol=1e-5)
    assert set(losses.sums) == {"loss", "square"}
    np.testing.assert_allclose(losses.sums["square"], others.sums["square"], rtol=1e-5)
    np.testing.assert_allclose(objective, losses.nats + 1e-3 * losses.sums["square"][0], rtol=1e-5)
    assert losses.sums["square"][1] == 4 * BATCH.tokens.size * 32
    np.testing.assert_allclose(grads["wte"], other_grads["wte"], atol=1e-4, rtol=1e-4)


def noisy_params(model):
    flat, unflatten = ravel_pytree(model.init(0).params())
    return unflatten(flat + 0.1 * np.random.default_rng(0).normal(size=flat.shape).astype(np.float32))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_training_step_has_the_mean_of_what_blocks_report(reports, microbatches):
    model = Transformer(tiny())
    train = TrainConfig(steps=10, warmup_steps=0)
    optimizer = make_optimizer(train, model.dims())
    model = model.init(0)
    with jax.set_mesh(model.layout.mesh):
        losses = jax.jit(lambda model: model.loss(BATCH))(model)
        state = init_state(model, optimizer)
        batch = jax.tree.map(lambda a: jnp.asarray(a).reshape(microbatches, -1, a.shape[-1]), BATCH)
        _, metrics = make_train_step(model, optimizer, train)(state, batch, 0)
    total, count = losses.sums["square"]
    np.testing.assert_allclose(metrics["square"], total / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], losses.nats / losses.scored, rtol=1e-5)


def test_layers_are_compiled_side_by_side_on_gpus_unless_told_otherwise():
    gpu, tpu = SimpleNamespace(platform="gpu"), SimpleNamespace(platform="tpu")
    assert [turns(None, gpu), turns(None, tpu), turns(2, gpu)] == [0, 1, 2]
