"""Rows split over devices (`sequence:AXIS`) give the loss and gradients of one device, whatever else is
split and however layers are run."""

import math
import re
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import N_VOCAB, layout_of, model_config, noisy, random_tokens, tiny

from neojax.config import MeshConfig, TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import Share
from neojax.layout.mesh import make_layout
from neojax.layout.topology import tpu_devices
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.plan.hlo import collectives
from neojax.training.optimizer import make_optimizer
from neojax.training.state import init_state
from neojax.training.step import make_train_step

LENGTH, ROWS = 32, 4
SIZES = {"n_layer": 2, "n_ctx": LENGTH, "n_embd": 32, "n_vocab": N_VOCAB}
MODELS = {
    "gpt_neo": lambda: tiny(n_ctx=LENGTH),
    "axial": lambda: tiny(n_ctx=LENGTH, n_layer=2, axial_pos_emb=[4, 8]),
    "gpt_neox": lambda: model_config(family="gpt_neox", n_head=4, **SIZES),
    "llama": lambda: model_config(family="llama", n_head=4, **{"attention.kv_heads": 2}, **SIZES),
    "memory, dropout, linear": lambda: tiny(
        n_ctx=LENGTH, n_layer=2, attention_types=("global", "linear"), num_mem_kv=2, attn_dropout=0.2
    ),
    "experts": lambda: tiny(
        n_ctx=LENGTH, n_layer=2, **{"experts.number": 4, "experts.layers": [1], "experts.width": 16}
    ),
    "both ways": lambda: tiny(n_ctx=LENGTH, n_layer=2, causal=False),
}
PRODUCTS = "heads:y, mlp:y, vocab:y, expert_mlp:y"
LAYOUTS = {
    "alone": ("x:8", "sequence:x", "", {"remat": "full"}),
    "rows and fsdp": ("x:2, y:4", "batch:x, sequence:y, positions:y", "embd:x", {"remat": "names"}),
    "model": ("x:4, y:2", "sequence:x, heads:y, mlp:y, vocab:y", "embd:x", {"remat": "names"}),
    "beside products": ("x:2, y:4", f"batch:x, sequence:y, {PRODUCTS}", "embd:x", {"remat": "names"}),
    "of both kinds": ("x:2, y:4", f"sequence:x+y, {PRODUCTS}", "", {}),
    "unrolled": ("x:2, y:2, z:2", "batch:z, sequence:x+y", "embd:y", {"unroll": 0}),
}


def batch(is_apart):
    """Targets are the next tokens, those of a part's last tokens in the next part; some are not scored."""
    tokens = random_tokens(ROWS, LENGTH + 1)
    targets = np.where(random_tokens(ROWS, LENGTH, seed=1) % 7 == 0, -1, tokens[:, 1:])
    if not is_apart:
        return Batch(tokens[:, :-1], targets)
    ends = np.array([[5], [16], [20], [27]])
    time = np.arange(LENGTH)
    later = time >= ends
    return Batch(
        tokens[:, :-1],
        targets,
        segments=(1 + later).astype(np.int32),
        positions=np.where(later, time - ends, time).astype(np.int32),
    )


@cache
def measured(model, is_apart, shape="x:1", layout="", param_layout="", **compute):
    config = MODELS[model]()
    own = Transformer(config, layout_of(shape, layout, param_layout), Compute(**compute))
    weights, values = noisy(config).params(), {}
    for name, spec in own.stored().items():
        value = np.zeros(spec.shape, np.float32)
        value[tuple(map(slice, weights[name].shape))] = weights[name]
        values[name] = jax.device_put(value, spec.sharding)

    key = jax.random.key(1) if config.attention.dropout else None

    def loss(params):
        losses = own.bind(params).loss(batch(is_apart), dropout_key=key)
        return losses.total() / losses.scored

    with jax.set_mesh(own.layout.mesh):
        total, grads = jax.jit(jax.value_and_grad(loss))(values)
    return float(total), {name: np.asarray(g) for name, g in grads.items()}


@pytest.mark.parametrize(
    "model, is_apart, layout",
    [
        *(("gpt_neo", False, name) for name in LAYOUTS if name != "unrolled"),
        pytest.param("gpt_neo", False, "unrolled", marks=pytest.mark.slow),
        pytest.param("axial", False, "alone", marks=pytest.mark.slow),
        ("gpt_neox", True, "rows and fsdp"),
        ("llama", False, "model"),
        ("both ways", False, "alone"),
        ("llama", True, "beside products"),
        ("memory, dropout, linear", True, "rows and fsdp"),
        pytest.param("memory, dropout, linear", True, "beside products", marks=pytest.mark.slow),
        ("experts", False, "beside products"),
    ],
)
def test_loss_and_gradients_are_those_of_one_device(model, is_apart, layout):
    *own, compute = LAYOUTS[layout]
    total_1, grads_1 = measured(model, is_apart)
    total, grads = measured(model, is_apart, *own, **compute)
    assert abs(total - total_1) <= 1e-5 * total_1
    for name, grad in grads_1.items():
        found = grads[name][tuple(map(slice, grad.shape))]
        np.testing.assert_allclose(found, grad, atol=1e-5 * max(np.abs(grad).max(), 1e-3), err_msg=name)


def test_a_step_in_microbatches_has_the_loss_and_gradients_of_one_device():
    layout = layout_of("x:2, y:4", "batch:x, sequence:y, positions:y", "embd:x")
    model = noisy(MODELS["gpt_neo"](), layout)
    train = TrainConfig(batch_size=ROWS, warmup_steps=0, schedule="constant", clip_norm=0.0)
    optimizer = make_optimizer(train, model.dims(), N_VOCAB)
    with jax.set_mesh(layout.mesh):
        step = make_train_step(model, optimizer, train)
        placed = Share(layout, 2).place(batch(False))
        assert placed.tokens.shape == (2, 2, LENGTH)
        _, metrics = step(init_state(model, optimizer), placed, jnp.int32(0))
    total, grads = measured("gpt_neo", False)
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.slow
def test_both_kinds_of_split_compile_for_a_tpu():
    """Splash on the parts of rows, forward once; the residual stream between tensor-parallel products is
    gathered before them and comes back by reduce-scatter, and is nowhere summed whole."""
    pytest.importorskip("libtpu")
    layout = make_layout(MeshConfig("x:2, y:2", f"sequence:x+y, {PRODUCTS}"), tpu_devices("v5e:2x2"))
    config = tiny(n_embd=256, n_head=2, n_ctx=512, window_size=100)
    model = Transformer(config, layout, Compute(dtype=jnp.bfloat16, remat="names"))
    tokens = jax.ShapeDtypeStruct((4, 512), jnp.int32, sharding=layout.sharding(("batch", "sequence")))

    def loss(params, tokens):
        return model.bind(params).loss(Batch(tokens, tokens)).total()

    with jax.set_mesh(layout.mesh):
        hlo = jax.jit(jax.value_and_grad(loss)).lower(model.stored(), tokens).compile().as_text()
    calls = [line for line in hlo.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    kernels = sorted(match[1] for line in calls if (match := re.search(r"splash_mha_(\w+?)_", line)))
    assert kernels == ["dkv", "dkv", "dq", "dq", "fwd", "fwd"]
    stream = math.prod((4, 256, 256))  # a device's rows, whole along y
    found = [c for c in collectives(hlo) if stream in [math.prod(shape) for _, shape in c.arrays]]
    kinds = Counter(c.kind for c in found if c.times == 2)  # in the loop over the two repetitions
    assert kinds["all-reduce"] == 0 and kinds["reduce-scatter"] >= 8 and kinds["all-gather"] >= 8
