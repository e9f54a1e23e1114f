import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from neojax.config import TrainConfig
from neojax.errors import NeojaxError
from neojax.training import adafactor
from neojax.training.optimizer import decay_mask, make_optimizer
from neojax.training.schedule import learning_rate

DIMS = {
    "wte": ("vocab", "embd"),
    "blocks.0.attn.query": ("layers", "embd", "heads", "head_dim"),
    "blocks.0.mlp.bias": ("layers", "mlp"),
    "blocks.0.norm.scale": ("layers", "embd"),
    "final_norm.scale": ("embd",),
}
SIZES = {"vocab": 48, "embd": 32, "heads": 4, "head_dim": 8, "mlp": 64, "layers": 4}
TRAIN = TrainConfig(learning_rate=1e-2, warmup_steps=2, steps=20)
LAYOUTS = {
    "fsdp and model": {"embd": "data", "heads": "model", "mlp": "model", "vocab": "model"},
    "split layers": {"layers": "data", "vocab": "data", "mlp": "model"},
}


@pytest.fixture(autouse=True)
def factor_small_matrices(monkeypatch):
    monkeypatch.setattr(adafactor, "MIN_FACTORED", 32)


def arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=[SIZES[d] for d in ds]).astype("f4") * scale for n, ds in DIMS.items()}


def steps(optimizer, params, count=5):
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for i in range(count):
        grads = {n: jax.device_put(g, params[n].sharding) for n, g in arrays(i + 1, 0.1).items()}
        params, state, norm = update(grads, state, params)
    return params, state, norm


def put(params, mesh, layout):
    spec = {n: PartitionSpec(*(layout.get(d) for d in ds)) for n, ds in DIMS.items()}
    return {n: jax.device_put(p, NamedSharding(mesh, spec[n])) for n, p in params.items()}


def test_adamw_is_the_published_rule():
    train = dataclasses.replace(TRAIN, clip_norm=0.5)
    params, _, norm = steps(make_optimizer(train, DIMS), jax.tree.map(jnp.asarray, arrays(0)))
    expected = {n: p.astype("f8") for n, p in arrays(0).items()}
    m = dict.fromkeys(DIMS, 0.0)
    v = dict.fromkeys(DIMS, 0.0)
    for t in range(5):
        grads = arrays(t + 1, 0.1)
        total = math.sqrt(sum((g.astype("f8") ** 2).sum() for g in grads.values()))
        rate = float(learning_rate(train)(t))
        for n, g in grads.items():
            g = g * min(1, 0.5 / total)
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.95 * v[n] + 0.05 * g**2
            step = (m[n] / (1 - 0.9 ** (t + 1))) / (np.sqrt(v[n] / (1 - 0.95 ** (t + 1))) + 1e-8)
            decay = 0.1 if n in ("wte", "blocks.0.attn.query") else 0.0
            expected[n] = expected[n] - rate * (step + decay * expected[n])
    assert total > 0.5  # the clip was at work
    np.testing.assert_allclose(norm, total, rtol=1e-6)
    for n in DIMS:
        np.testing.assert_allclose(params[n], expected[n], atol=1e-6)


def lamb_by_hand(train, start, count):
    """float64, layer by layer; the last rows of the vocabulary are padding. What is below two dimensions does
    not decay, and takes Adam's step."""
    layers = {}
    for n, p in start.items():
        for i in range(SIZES["layers"]) if "layers" in DIMS[n] else [...]:
            layers[n, i] = p.astype("f8")[i][:PADDED] if n == "wte" else p.astype("f8")[i]
    m, v = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for t in range(count):
        rate = float(learning_rate(train)(t))
        for (n, i), w in layers.items():
            g = arrays(t + 1, 0.1)[n].astype("f8")[i]
            g = g[:PADDED] if n == "wte" else g
            m[n, i] = train.beta1 * m[n, i] + (1 - train.beta1) * g
            v[n, i] = train.beta2 * v[n, i] + (1 - train.beta2) * g**2
            corrections = 1, 1
            if train.bias_correction:
                corrections = 1 - train.beta1 ** (t + 1), 1 - train.beta2 ** (t + 1)
            step = m[n, i] / corrections[0] / (np.sqrt(v[n, i] / corrections[1]) + train.epsilon)
            if n in ("wte", "blocks.0.attn.query"):
                step = step + train.weight_decay * w
                lengths = np.sqrt((w**2).sum()), np.sqrt((step**2).sum())
                step = step * (lengths[0] / lengths[1] if all(lengths) else 1.0)
            layers[n, i] = w - rate * step
    return layers


PADDED = 40  # rows of the vocabulary that are no padding


@pytest.mark.parametrize("corrected", [True, False])
def test_lamb_is_the_published_rule_for_every_layer_on_a_mesh_that_splits_it(corrected):
    train = dataclasses.replace(
        TRAIN, optimizer="lamb", bias_correction=corrected, epsilon=1e-6, clip_norm=0.0, weight_decay=0.3
    )
    start = arrays(0)
    start["blocks.0.attn.query"] *= np.arange(1, 5).reshape(4, 1, 1, 1)  # every layer has its own length
    start["blocks.0.attn.query"][2] = 0.0  # and one has none
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    with jax.set_mesh(mesh):
        params = put(start, mesh, LAYOUTS["fsdp and model"])
        params, _, _ = steps(make_optimizer(train, DIMS, PADDED), params)
    for (n, i), expected in lamb_by_hand(train, start, 5).items():
        found = np.asarray(params[n])[i]
        found = found[:PADDED] if n == "wte" else found
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("corrected", [True, False])
def test_a_bfloat16_moment_is_the_float32_one_rounded(corrected):
    """Kept in bfloat16, computed with in float32: steps differ by the rounding of the moment, the second not
    at all."""
    train = dataclasses.replace(TRAIN, bias_correction=corrected, weight_decay=0.0, clip_norm=0.0)
    start = jax.tree.map(jnp.asarray, arrays(0))
    exact, exact_state, _ = steps(make_optimizer(train, DIMS), start)
    half, state, _ = steps(make_optimizer(dataclasses.replace(train, moment_dtype="bfloat16"), DIMS), start)
    for n in DIMS:
        assert state[0].mu[n].dtype == jnp.bfloat16 and state[0].nu[n].dtype == jnp.float32
        scale = np.abs(exact_state[0].mu[n]).max()
        np.testing.assert_allclose(state[0].mu[n].astype("f4"), exact_state[0].mu[n], atol=scale / 64)
        np.testing.assert_array_equal(state[0].nu[n], exact_state[0].nu[n])
        moved = np.abs(exact[n] - start[n]).max()
        np.testing.assert_allclose(half[n], exact[n], atol=moved / 32)
        assert (half[n] != exact[n]).any()


def test_clip_bounds_the_norm_that_reaches_the_update():
    optimizer = make_optimizer(dataclasses.replace(TRAIN, clip_norm=0.25), DIMS)
    optimizer = dataclasses.replace(optimizer, transform=optax.identity())  # the update is the gradient
    zeros = jax.tree.map(jnp.zeros_like, arrays(0))
    scales = 1e-3, 1.0, 0.0
    seen = [optimizer.update(jax.tree.map(jnp.asarray, arrays(1, s)), (), zeros)[0] for s in scales]
    small, big, zero = map(optax.tree.norm, seen)
    np.testing.assert_allclose(small, optax.tree.norm(arrays(1, 1e-3)), rtol=1e-6)
    np.testing.assert_allclose(big, 0.25, rtol=1e-6)
    assert zero == 0


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "adafactor with momentum", "lamb"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_mesh_gives_the_updates_of_one_device_and_keeps_the_layout(kind, layout):
    kind, _, momentum = kind.partition(" ")
    train = dataclasses.replace(TRAIN, optimizer=kind, adafactor_momentum=0.9 if momentum else 0.0)
    optimizer = make_optimizer(train, DIMS)
    alone, alone_state, _ = steps(optimizer, jax.tree.map(jnp.asarray, arrays(0)))
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    with jax.set_mesh(mesh):
        start = put(arrays(0), mesh, layout)
        split, split_state, _ = steps(optimizer, start)
        fresh = jax.jit(optimizer.init)(start)
    for a, b in zip(jax.tree.leaves((alone, alone_state)), jax.tree.leaves((split, split_state))):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for n in DIMS:
        assert split[n].sharding == start[n].sharding
    # State is born in the layout that the update returns it in: no recompilation, no move.
    assert jax.tree.map(lambda x: x.sharding.spec, fresh) == jax.tree.map(
        lambda x: x.sharding.spec, split_state
    )


def test_state_is_stored_as_its_parameter():
    layout = LAYOUTS["fsdp and model"]
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    with jax.set_mesh(mesh):
        params = put(arrays(0), mesh, layout)
        adam = jax.jit(make_optimizer(TRAIN, DIMS).init)(params)[0]
        optimizer = make_optimizer(dataclasses.replace(TRAIN, optimizer="adafactor"), DIMS)
        factored = jax.jit(optimizer.init)(params)[0]
        with_momentum = dataclasses.replace(TRAIN, optimizer="adafactor", adafactor_momentum=0.5)
        _, mean = jax.jit(make_optimizer(with_momentum, DIMS).init)(params)[0]
    for n in DIMS:
        assert adam.mu[n].sharding == adam.nu[n].sharding == params[n].sharding
    assert factored.v["blocks.0.mlp.bias"].sharding == params["blocks.0.mlp.bias"].sharding
    query = "blocks.0.attn.query"
    row, col = factored.row[query], factored.col[query]
    assert row.shape == (4, 32) and row.sharding.spec == PartitionSpec(None, "data")
    assert col.shape == (4, 4, 8) and col.sharding.spec == PartitionSpec(None, "model", None)
    assert set(factored.row) == {"wte", query}
    for n in DIMS:
        assert mean.ema[n].sharding == params[n].sharding


def test_adafactor_treats_stacked_layers_as_separate_matrices():
    train = dataclasses.replace(TRAIN, optimizer="adafactor", clip_norm=0.0)
    stacked = {"w": ("layers", "embd", "mlp")}
    rng = np.random.default_rng(0)
    p, g = rng.normal(size=(2, 3, 32, 40)).astype("f4") * np.array([1, 5, 0.01], "f4")[:, None, None]
    together = make_optimizer(train, stacked)
    apart = make_optimizer(train, {"w": ("embd", "mlp")})
    state = together.init({"w": jnp.asarray(p)})
    got = {"w": jnp.asarray(p)}
    for _ in range(3):
        got, state, _ = together.update({"w": g}, state, got)
    for layer in range(3):
        one = {"w": jnp.asarray(p[layer])}
        state = apart.init(one)
        for _ in range(3):
            one, state, _ = apart.update({"w": g[layer]}, state, one)
        np.testing.assert_allclose(got["w"][layer], one["w"], rtol=1e-6)


def test_adafactor_is_optax_adafactor_on_a_matrix():
    dims = {"w": ("embd", "mlp"), "b": ("mlp",)}
    train = dataclasses.replace(TRAIN, optimizer="adafactor", clip_norm=0.0, weight_decay=0.0)
    theirs = optax.adafactor(learning_rate(train), min_dim_size_to_factor=32)
    rng = np.random.default_rng(0)
    ours = params = {"w": jnp.asarray(rng.normal(size=(32, 40)), "f4"), "b": jnp.zeros(40)}
    optimizer = make_optimizer(train, dims)
    state, their_state = optimizer.init(ours), theirs.init(params)
    for _ in range(5):
        grads = {n: jnp.asarray(rng.normal(size=p.shape), "f4") for n, p in params.items()}
        ours, state, _ = optimizer.update(grads, state, ours)
        updates, their_state = theirs.update(grads, their_state, params)
        params = optax.apply_updates(params, updates)
    for n in params:
        np.testing.assert_allclose(ours[n], params[n], rtol=1e-5, atol=1e-7)


MATRICES = {
    "query": ("layers", "embd", "heads", "head_dim"),
    "out": ("layers", "heads", "head_dim", "embd"),
    "up": ("layers", "embd", "mlp"),
    "short": ("memory_slots", "embd"),
    "query_bias": ("layers", "heads", "head_dim"),
    "scale": ("embd",),
}


@pytest.mark.parametrize(
    "decay, momentum, epsilon1, epsilon2",
    [(None, 0.0, 1e-30, 1e-3), (0.1, 0.9, 1e-30, 1e-3), (0.0, 0.5, 1e-2, 0.1)],
)
def test_adafactor_is_mesh_tensorflows_on_its_variables(decay, momentum, epsilon1, epsilon2):
    """A variable there is one layer, heads and their features on one axis; short ones are not factored."""
    sizes = SIZES | {"memory_slots": 3, "head_dim": 10}
    rng = np.random.default_rng(0)
    scales = {"query": 0.02, "up": 2.0, "scale": 0.0}
    start = {
        n: (rng.normal(size=[sizes[d] for d in ds]) * scales.get(n, 1.0)).astype("f4")
        for n, ds in MATRICES.items()
    }
    grads = [{n: rng.normal(size=p.shape).astype("f4") for n, p in start.items()} for _ in range(4)]
    train = dataclasses.replace(
        TRAIN, optimizer="adafactor", schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0,
        adafactor_decay=decay, adafactor_momentum=momentum, adafactor_epsilon1=epsilon1, adafactor_epsilon2=epsilon2,  # noqa: E501
    )  # fmt: skip
    optimizer = make_optimizer(train, MATRICES)
    params = jax.tree.map(jnp.asarray, start)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for g in grads:
        params, state, _ = update(g, state, params)

    def variables(arrays, n):
        dims = MATRICES[n]
        flat = np.asarray(arrays[n], "f8")
        if "heads" in dims:
            at = dims.index("heads")
            flat = flat.reshape(*flat.shape[:at], -1, *flat.shape[at + 2 :])
        return list(flat) if "layers" in dims else [flat]

    for n in MATRICES:
        history = zip(*(variables(g, n) for g in grads))
        for before, after, gs in zip(variables(start, n), variables(params, n), history):
            expected = mesh_tf_adafactor(before, gs, decay, momentum, epsilon1, epsilon2)
            np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6, err_msg=n)


def mesh_tf_adafactor(x, grads, decay, beta1, epsilon1, epsilon2):
    """`AdafactorOptimizer.apply_grad` of Mesh-TensorFlow's optimize.py in numpy, at a learning rate of
    0.01."""
    vr = vc = v = m = 0.0
    for step, g in enumerate(grads):
        rate = 1 - (step + 1) ** -0.8 if decay is None else decay
        square = g**2 + epsilon1
        if x.ndim == 2 and min(x.shape) >= 32:
            vr = rate * vr + (1 - rate) * square.mean(1, keepdims=True)
            vc = rate * vc + (1 - rate) * square.mean(0, keepdims=True)
            v = vr / vr.mean() * vc
        else:
            v = rate * v + (1 - rate) * square
        u = g / np.sqrt(v)
        u /= max(1.0, np.sqrt((u**2).mean()))
        u *= 0.01 * max(epsilon2, np.sqrt((x**2).mean()))
        m = beta1 * m + (1 - beta1) * u
        x = x - m
    return x


@pytest.mark.parametrize("sizes, factors", [((127, 200), {}), ((200, 127), {}), ((128, 129), {"w"})])
def test_adafactor_factors_from_128_entries_on(sizes, factors, monkeypatch):
    monkeypatch.undo()
    optimizer = make_optimizer(dataclasses.replace(TRAIN, optimizer="adafactor"), {"w": ("embd", "mlp")})
    state = jax.eval_shape(optimizer.init, {"w": jax.ShapeDtypeStruct(sizes, jnp.float32)})[0]
    assert state.row.keys() == state.col.keys() == set(factors) and state.v.keys() == {"w"} - set(factors)


@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
@pytest.mark.parametrize(
    "n_vocab, embd",
    [(57, 40), (33, 40), (31, 40), (57, 8)],
    ids=["longest", "second", "padded to a factored side", "short"],
)
def test_padding_of_the_vocabulary_does_not_change_adafactors_update(n_vocab, embd, epsilon):
    """Nor which side is the longest, or long enough; and nothing is added to the padding."""
    dims = {"wte": ("vocab", "embd")}
    train = dataclasses.replace(
        TRAIN, optimizer="adafactor", adafactor_epsilon1=epsilon, adafactor_momentum=0.5, warmup_steps=0
    )
    rng = np.random.default_rng(0)
    start, *grads = rng.normal(size=(4, n_vocab, embd)).astype("f4") * 0.1
    rows = n_vocab + 7

    def run(rows):
        mesh = jax.make_mesh((1,), ("model",), devices=jax.devices()[:1])
        if rows % 8 == 0:
            mesh = jax.make_mesh((8,), ("model",))

        def padded(x):
            x = np.pad(x, ((0, rows - n_vocab), (0, 0)))
            return {"wte": jax.device_put(x, NamedSharding(mesh, PartitionSpec("model", None)))}

        optimizer = make_optimizer(train, dims, n_vocab)
        with jax.set_mesh(mesh):
            params = padded(start)
            state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
            for g in grads:
                params, state, _ = update(padded(g), state, params)
        return np.asarray(params["wte"])

    alone, padded = run(n_vocab), run(rows)
    np.testing.assert_allclose(padded[:n_vocab], alone, rtol=1e-6, atol=1e-7)
    assert np.abs(alone - start).max() > 1e-3 and not padded[n_vocab:].any()


def test_decay_mask():
    assert [n for n, decays in decay_mask(("ndim<2",), DIMS).items() if decays] == [
        "wte",
        "blocks.0.attn.query",
    ]
    assert [n for n, decays in decay_mask(("vocab", "*norm*"), DIMS).items() if decays] == [
        "blocks.0.attn.query",
        "blocks.0.mlp.bias",
    ]
    heads = {"query": ("layers", "embd", "heads", "head_dim"), "query_bias": ("layers", "heads", "head_dim")}
    assert decay_mask(("ndim<2",), heads) == {"query": True, "query_bias": False}
    assert all(decay_mask((), DIMS).values())
    for wrong, right in (("vocabb", "vocab"), ("wtee", "wte")):
        with pytest.raises(NeojaxError, match=rf"train.no_decay: '{wrong}' .* did you mean {right}\?"):
            decay_mask((wrong,), DIMS)


@pytest.mark.parametrize(
    "schedule, at",
    [
        ("cosine", {0: 0, 5: 0.5, 10: 1, 60: 0.55, 110: 0.1, 200: 0.1}),
        ("linear", {0: 0, 5: 0.5, 10: 1, 35: 0.775, 60: 0.55, 110: 0.1, 200: 0.1}),
        ("linear_to_zero", {0: 0, 5: 0.5, 10: 1, 35: 0.75, 60: 0.5, 95: 0.15, 110: 0.1, 200: 0.1}),
        ("exponential", {0: 0, 5: 0.5, 10: 1, 60: 0.707159, 110: 0.500074, 200: 0.500074}),
        ("constant", {0: 0, 5: 0.5, 10: 1, 200: 1}),
        ("inverse_sqrt", {0: 0, 5: 0.5, 10: 1, 40: 0.5, 1000: 0.1}),
    ],
)
def test_schedule(schedule, at):
    train = TrainConfig(learning_rate=1.0, warmup_steps=10, decay_steps=110, steps=200, schedule=schedule)
    rate = learning_rate(train)
    for step, expected in at.items():
        np.testing.assert_allclose(rate(step), expected, atol=1e-6)
        np.testing.assert_allclose(jax.jit(rate)(step), expected, atol=1e-6)
    assert rate(3).dtype == jnp.float32
    unwarmed = learning_rate(dataclasses.replace(train, warmup_steps=0))
    np.testing.assert_allclose(unwarmed(0), 1.0)
