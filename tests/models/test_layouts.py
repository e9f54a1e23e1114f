"""The same weights and batch give the same initial values, loss, gradients and logits on every layout."""

import zlib
from contextlib import nullcontext
from functools import cache

import jax
import numpy as np
import pytest
from helpers import N_VOCAB, layout_of, perturbed, random_tokens, tiny, true_rows

from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.layout.named import Normal
from neojax.models import Transformer
from neojax.models.compute import Compute

CONFIG = tiny()
TOKENS = random_tokens()
TARGETS = np.where(random_tokens(seed=1) % 5 == 0, -1, random_tokens(seed=2))
MODEL = "heads:model, mlp:model, vocab:model"
LAYOUTS = {
    "data": ("data:8", "batch:data", ""),
    "heads": ("model:4", "heads:model", ""),
    "mlp": ("model:4", "mlp:model", ""),
    "vocab": ("model:4", "vocab:model", ""),
    "fsdp": ("data:8", "batch:data", "embd:data"),
    "fsdp and model": ("data:4, model:2", f"batch:data, {MODEL}", "embd:data"),
    "gpt-neo XL": ("x:4, y:2", "batch:x, memory_length:y, embd:y", ""),
    "sequence": ("x:2, y:4", "batch:x, sequence:y", "embd:x+y"),
    "sequence beside products": ("data:2, model:4", f"batch:data, sequence:model, {MODEL}", "embd:data"),
    "head_dim": ("x:2, y:4", "batch:x, features_per_head:y", ""),
    "two axes": ("x:2, y:2, z:2", "batch:x, heads:y+z, intermediate_expanded:z+y, vocab:z", "vocab:z+x"),
    "positions": ("x:2, y:2", "batch:x, embed_sequence:y", "positions:x+y"),
    "fsdp over two axes": ("x:4, y:2", "batch:x+y", "embd:x+y"),
    "stored in the other order": ("x:4, y:2", "batch:x+y", "embd:y+x"),
    "fsdp within, copies across": ("x:2, y:4", "batch:x+y", "embd:y"),
    "two stored dimensions": ("x:4, y:2", "batch:x+y", "embd:x, mlp:y, head_dim:y, vocab:y"),
    "pipeline": ("stage:2, data:4", "batch:data, layers:stage, vocab:stage", ""),
    "pipeline, fsdp and model": (
        "stage:2, data:2, model:2",
        "batch:data, layers:stage, heads:model, mlp:model, vocab:stage+model",
        "embd:data",
    ),
    "three axes": ("x:2, y:2, z:2", f"batch:x+y, {MODEL.replace('model', 'z')}", "embd:x+y"),
}


@cache
def measured(shape, layout, param_layout, dtype="float32"):
    """Initial values, then loss, gradients and logits of perturbed ones."""
    model = Transformer(CONFIG, layout_of(shape, layout, param_layout), Compute(dtype=dtype)).init(0)
    first = model.params()
    noise = perturbed(true_rows_on_device(first))
    params = {n: pad_like(noise[n], p) for n, p in first.items()}

    def loss(params):
        bound = model.bind(params)
        losses = bound.loss(Batch(TOKENS, TARGETS))
        nll = losses.nats
        scored = losses.scored
        return nll / scored, bound.logits(bound.hidden(TOKENS)[0])

    # JAX 0.12 takes the gradient through stages only with the mesh in force, as training has it.
    with model.layout.in_force() if model.is_pipeline else nullcontext():
        (loss, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return model, params, true_rows(first), float(loss), grads, np.asarray(logits)


def true_rows_on_device(params):
    return {n: jax.device_put(p, jax.devices()[0]) for n, p in true_rows(params).items()}


def pad_like(value, like):
    value = np.asarray(value)
    padding = [(0, b - a) for a, b in zip(value.shape, like.shape)]
    return jax.device_put(np.pad(value, padding), like.sharding)


@pytest.fixture(scope="module")
def one_device():
    return measured("data:1", "", "")


@pytest.mark.parametrize("name", LAYOUTS)
def test_same_everywhere(name, one_device):
    _, _, first_1, loss_1, grads_1, logits_1 = one_device
    model, _, first, loss, grads, logits = measured(*LAYOUTS[name])
    assert abs(loss - loss_1) <= 1e-5 * loss_1
    grads_1 = true_rows(grads_1)
    for param, g in true_rows(grads).items():
        np.testing.assert_allclose(g, grads_1[param], atol=1e-5 * np.abs(grads_1[param]).max(), err_msg=param)
        # The random bits are the same; code compiled for parts of another size may round the last bit
        # otherwise.
        np.testing.assert_allclose(first[param], first_1[param], rtol=1e-6, atol=1e-7, err_msg=param)
        assert grads[param].sharding.spec == model.stored()[param].sharding.spec, param
    assert (logits[..., N_VOCAB:] == -np.inf).all()
    np.testing.assert_allclose(logits[..., :N_VOCAB], logits_1, atol=2e-5)


@pytest.mark.parametrize("name", [None, "fsdp and model", "gpt-neo XL", "sequence beside products"])
def test_bfloat16_computes_on_float32_parameters(name, one_device):
    """Loss and gradients of bfloat16 are float32's but for the rounding of activations, on one device and on
    many."""
    _, _, _, loss_1, grads_1, logits_1 = one_device
    _, params, _, loss, grads, logits = measured(*(LAYOUTS[name] if name else ("data:1", "", "")), "bfloat16")
    assert {p.dtype.name for p in (*params.values(), *grads.values())} == {"float32"}
    assert 0 < abs(loss - loss_1) < 2e-3 * loss_1
    assert np.abs(logits[..., :N_VOCAB] - logits_1).max() < 0.1
    grads_1 = true_rows(grads_1)
    for param, g in true_rows(grads).items():
        assert 0 < np.linalg.norm(g - grads_1[param]) < 0.06 * np.linalg.norm(grads_1[param]), param


def test_padding_stays_zero():
    """Neither initial values nor gradients touch the rows that pad the vocabulary; callers never see them."""
    model, params, _, _, grads, logits = measured(*LAYOUTS["vocab"])
    np.testing.assert_allclose(model.bind(params)(TOKENS), logits[..., :N_VOCAB], atol=2e-5)
    rows = np.asarray(model.params()["wte"])
    assert rows.shape[0] == 64 and rows[:N_VOCAB].any(axis=1).all()
    assert not rows[N_VOCAB:].any()
    assert not np.asarray(grads["wte"])[N_VOCAB:].any()


@pytest.mark.parametrize("name", ["vocab", "fsdp and model", "two axes"])
def test_true_rows_are_drawn_as_without_padding_and_in_their_place(name, monkeypatch):
    """A table is drawn once, split as it is stored; what pads it moves no random number."""
    drawn = []
    draw = Normal.__call__

    def recorded(self, key, shape, sharding):
        drawn.append((key, shape, sharding.spec))
        return draw(self, key, shape, sharding)

    monkeypatch.setattr(Normal, "__call__", recorded)
    model = Transformer(CONFIG, layout_of(*LAYOUTS[name]))
    table = np.asarray(model.init(5).params()["wte"])
    spec = model.stored()["wte"]
    assert [(shape, s) for _, shape, s in drawn if shape[0] >= N_VOCAB] == [(spec.shape, spec.sharding.spec)]
    key = jax.random.fold_in(jax.random.key(5), zlib.crc32(b"wte"))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    alone = 0.02 * jax.random.normal(jax.device_put(key, one), (N_VOCAB, CONFIG.n_embd))
    assert table.shape[0] > N_VOCAB and not table[N_VOCAB:].any()
    np.testing.assert_allclose(table[:N_VOCAB], alone, rtol=1e-6, atol=1e-8)


def test_parameters_really_are_split():
    """FSDP and model parallelism together leave a device an eighth of a weight."""
    model, *_ = measured(*LAYOUTS["fsdp and model"])
    for name in ("blocks.0.attn.query", "blocks.1.mlp.down", "wte"):
        array = model.params()[name]
        assert array.addressable_shards[0].data.size * 8 == array.size, name


@pytest.mark.parametrize(
    "shape, layout, param_layout, words",
    [
        ("model:8", "heads:model", "", ["parameter blocks.0.attn.", "heads", "model", "size 4"]),
        ("model:2", "embd:model, mlp:model", "", ["parameter blocks.0.mlp.", "embd", "mlp", "axis model"]),
        ("data:5", "", "embd:data", ["parameter blocks.0.", "mesh.param_layout", "embd", "size 32"]),
        ("x:2", "batch:x, embd:x", "", ["[batch sequence embd]", "batch", "embd", "axis x"]),
        ("x:5", "memory_length:x", "", ["[batch memory_length heads head_dim]", "size 24"]),
        ("x:2", "batch:x, vocab:x", "", ["[batch sequence vocab]", "batch", "vocab", "axis x"]),
    ],
)
def test_what_cannot_be_laid_out_is_named(shape, layout, param_layout, words):
    """Parameters before anything is computed, activations while tracing; nothing is silently replicated."""
    model = Transformer(CONFIG, layout_of(shape, layout, param_layout))
    with pytest.raises(NeojaxError) as error:
        params = model.stored()
        jax.eval_shape(lambda p: model.bind(p).loss(Batch(TOKENS, TARGETS)), params)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
