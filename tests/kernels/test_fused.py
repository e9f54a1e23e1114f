"""The platforms' own kernels equal the reference: values and gradients. Splash runs interpreted where there
is no TPU."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, tiny

from neojax.config import TrainConfig
from neojax.kernels import cudnn, splash
from neojax.kernels.attention import attention, fused, reference
from neojax.layout import named
from neojax.layout.mesh import make_layout
from neojax.models import Transformer
from neojax.models.compute import Compute

ONE = layout_of("data:1")
SPLASH = partial(splash.attention, interpret=True)
CUDNN = partial(cudnn.attention, implementation="xla")

# sequence, head_dim, window, padding of each row: windows and sequences that do and do not divide blocks of
# 128
CASES = [
    (256, 64, None, None),
    (200, 80, 100, [0, 30]),
    (130, 96, 256, None),
    (384, 128, 128, None),
]


def operands(length, head_dim, batch=1, heads=1, dtype=jnp.float32):
    """Operands whose scores are of ordinary size for even queries, and overflow float16 for odd ones.

    A huge query multiplies what is left of rounding in its gradient: less is pulled there, nothing in half
    precision.
    """
    odd = (jnp.arange(length) % 2 == 1)[None, :, None, None]
    q, k, v, pull = (
        jax.random.normal(key, (batch, length, heads, head_dim), jnp.float32)
        for key in jax.random.split(jax.random.key(0), 4)
    )
    q *= jnp.where(odd, 2e4, 1.0)
    pull *= jnp.where(odd, 1e-3 if dtype == jnp.float32 else 0.0, 1.0)
    return tuple(x.astype(dtype) for x in (q, k, v)), pull


def values_and_gradients(kernel, layout, operands, start, pull):
    def total(q, k, v):
        out = kernel(q, k, v, start=start)
        return jnp.sum(out * pull), out

    with named.use_layout(layout):
        (_, out), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*operands)
    return [np.asarray(x, "f4") for x in (out, *grads)]


def assert_close(ours, theirs, real, tolerance):
    for x, y in zip(ours, theirs, strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(
            x * real, y * real, atol=tolerance * np.abs(y * real).max(), rtol=tolerance
        )


@pytest.mark.parametrize("own", [SPLASH, CUDNN], ids=["splash", "cudnn"])
@pytest.mark.parametrize("length, head_dim, window, start", CASES)
def test_kernels_equal_the_reference(own, length, head_dim, window, start):
    batch = len(start or [0])
    (q, k, v), pull = operands(length, head_dim, batch)
    assert jnp.abs(jnp.einsum("bqhd,bkhd->bhqk", q, k)).max() > np.finfo(np.float16).max
    start = None if start is None else jnp.array(start)
    real = (np.arange(length) >= np.array([0] if start is None else start)[:, None])[..., None, None]
    ours, theirs = (
        values_and_gradients(kernel, ONE, (q, k, v), start, pull * real)
        for kernel in (partial(fused, partial(own, window=window)), partial(reference, window=window))
    )
    assert_close(ours, theirs, real, 1e-4)


@pytest.mark.parametrize("own", [SPLASH, CUDNN], ids=["splash", "cudnn"])
def test_heads_of_queries_may_share_a_head_of_keys(own):
    (q, k, v), pull = operands(128, 8, heads=4)
    k, v = k[:, :, :2], v[:, :, :2]
    ours, theirs = (
        values_and_gradients(kernel, ONE, (q, k, v), None, pull)
        for kernel in (partial(fused, partial(own, window=50)), partial(reference, window=50))
    )
    assert_close(ours, theirs, 1, 1e-4)


def documents(batch, length):
    """Segments [batch, length] of rows that hold two documents of other lengths each, and padding."""
    ends = length * (np.arange(batch)[:, None] + 1) // (batch + 2) + np.array([0, length // 3])
    time = np.arange(length)
    segments = 1 + (time >= ends[:, :1])
    return jnp.asarray(np.where(time < ends[:, 1:], segments, 0), jnp.int32)


def kept_apart(kernel, segments):
    """`kernel` of rows whose documents stand apart, as `values_and_gradients` calls it."""
    return lambda q, k, v, start: kernel(q, k, v, segments=segments)


@pytest.mark.parametrize("causal, window", [(True, None), (True, 50), (False, None)])
def test_cudnn_keeps_documents_apart_as_the_reference(causal, window):
    """And sees what comes after, where attention is not causal. What padding makes of the rest is the same
    there, and of itself where it is."""
    segments = documents(2, 128)
    (q, k, v), pull = operands(128, 8, batch=2)
    how = {"window": window, "causal": causal}
    ours, theirs = (
        values_and_gradients(kept_apart(kernel, segments), ONE, (q, k, v), None, pull)
        for kernel in (partial(fused, partial(CUDNN, **how)), partial(reference, **how))
    )
    assert_close(ours, theirs, 1, 1e-4)


@pytest.mark.parametrize("window, size", [(None, 512), (1, 128), (256, 256), (300, 512), (2000, 512)])
def test_splash_blocks_are_no_larger_than_the_window_needs(window, size):
    assert splash.block(2048, window) == size
    assert splash.block(640, window) == 128


@pytest.mark.parametrize("layout", ["batch:x, heads:y", "batch:x"])
def test_splash_is_the_same_on_a_mesh(layout):
    """Also on a mesh with an axis that splits nothing here, over which gradients must not be summed."""
    (q, k, v), pull = operands(128, 8, batch=2, heads=2)
    split = layout_of("x:2, y:2", layout)
    kernel = partial(fused, partial(SPLASH, window=50))
    with named.use_layout(split):
        sharding = named.sharding("batch sequence heads head_dim")
    laid = [jax.device_put(np.asarray(x), sharding) for x in (q, k, v, pull)]
    start = jax.device_put(np.array([0, 9], np.int32), split.sharding(["batch"]))
    ours = values_and_gradients(kernel, split, laid[:3], start, laid[3])
    theirs = values_and_gradients(kernel, ONE, (q, k, v), jnp.array([0, 9]), pull)
    assert_close(ours, theirs, 1, 2e-5)


@pytest.mark.gpu
@pytest.mark.tpu
@pytest.mark.parametrize(
    "length, head_dim, window, start", [*CASES, (2048, 128, 256, None), (515, 64, 100, [7])]
)
def test_the_own_kernel_of_an_accelerator_equals_the_reference(length, head_dim, window, start):
    """In bfloat16, against the reference in float32 of the same operands."""
    kernel = {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend())
    if kernel is None:
        pytest.skip("no GPU or TPU")
    half, pull = operands(length, head_dim, len(start or [0]), heads=2, dtype=jnp.bfloat16)
    start = None if start is None else jnp.array(start)
    real = (np.arange(length) >= np.array([0] if start is None else start)[:, None])[..., None, None]
    ours = values_and_gradients(
        partial(attention, window=window, kernel=kernel), ONE, half, start, pull * real
    )
    whole = [x.astype(jnp.float32) for x in half]
    with jax.default_matmul_precision("highest"):
        theirs = values_and_gradients(partial(reference, window=window), ONE, whole, start, pull * real)
    assert_close(ours, theirs, real, 0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("causal, window", [(True, None), (True, 50), (False, None)])
def test_the_gpus_own_kernel_keeps_documents_apart(causal, window):
    """In bfloat16, against the reference in float32 of the same operands, in all that is a document's."""
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU")
    segments = documents(2, 512)
    half, pull = operands(512, 64, batch=2, heads=2, dtype=jnp.bfloat16)
    real = np.asarray(segments > 0)[..., None, None]
    how = {"window": window, "causal": causal}
    ours = values_and_gradients(
        kept_apart(partial(attention, kernel="cudnn", **how), segments), ONE, half, None, pull * real
    )
    whole = [x.astype(jnp.float32) for x in half]
    with jax.default_matmul_precision("highest"):
        theirs = values_and_gradients(
            kept_apart(partial(reference, **how), segments), ONE, whole, None, pull * real
        )
    assert_close(ours, theirs, real, 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [False, True])
def test_the_training_step_compiles_for_a_tpu_with_splash(isolated):
    """Forward and backward kernels of both layers, once each: the backward pass of remat runs no second
    forward."""
    pytest.importorskip("libtpu")
    from neojax.config import MeshConfig
    from neojax.data.batch import Batch
    from neojax.data.share import BATCH_DIMS
    from neojax.layout.topology import tpu_devices
    from neojax.training.optimizer import make_optimizer
    from neojax.training.state import abstract_state
    from neojax.training.step import make_train_step

    layout = make_layout(MeshConfig("x:2, y:2", "batch:x, heads:y", "embd:x"), tpu_devices("v5e:2x2"))
    config = tiny(n_embd=256, n_head=2, n_ctx=256, window_size=100)
    model = Transformer(config, layout, Compute(dtype=jnp.bfloat16, remat="names"))
    optimizer = make_optimizer(TrainConfig(), model.dims())
    shape = (1, 4, 256)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.sharding(BATCH_DIMS, shape))
    with jax.set_mesh(layout.mesh):
        step = make_train_step(model, optimizer, TrainConfig())
        apart = tokens if isolated else None
        batch = Batch(tokens, tokens, segments=apart, positions=apart)
        lowered = step.lower(abstract_state(model, optimizer), batch, jax.ShapeDtypeStruct((), jnp.int32))
        hlo = lowered.compile().as_text()
    calls = [line for line in hlo.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    kernels = sorted(match[1] for line in calls if (match := re.search(r"splash_mha_(\w+?)_", line)))
    assert kernels == ["dkv", "dkv", "dq", "dq", "fwd", "fwd"]
