"""Mixtures of experts as layers: on every layout the same, and what the router reports and learns by."""

import math
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, noisy, perturbed, random_tokens, tiny, true_rows

import neojax
from neojax.config import LoraConfig, MeshConfig, TrainConfig
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.layout.mesh import make_layout
from neojax.layout.topology import tpu_devices
from neojax.models import Transformer
from neojax.models.adapters import Adapters
from neojax.models.compute import Compute
from neojax.models.experts import Experts, check_groups, groups_of
from neojax.models.fit import check_fit

TOKENS = random_tokens()
TARGETS = np.where(random_tokens(seed=1) % 5 == 0, -1, random_tokens(seed=2))
E = 8
COLLECTIVES = "all-to-all", "all-gather"
SMALL = {"n_layer": 1, "attention_types": ["none"], "n_embd": 128, "n_head": 1, "n_ctx": 128}


def mixed(attention=("none",), **experts):
    """Two groups of a layer with the MLP and one with experts, which have too little room; without attention
    where it does not matter."""
    keys = {"number": E, "width": 16, "layers": [1, 3], "capacity_factor": 0.8, "group_size": 6, **experts}
    experts = {f"experts.{key}": value for key, value in keys.items()}
    return tiny(attention_types=attention, **experts)


MODELS = {
    "places": {"second": "random"},
    "dropless": {"dropless": True, "capacity_factor": 1.25, "group_size": None, "second": "random"},
    "tries": {"top_k": 1, "tries": 3, "input_dropout": 0.2, "min_capacity": 1},
}


@cache
def measured(shape="data:1", layout="", param_layout="", experts="places", **compute):
    config = mixed(**MODELS[experts])
    model = Transformer(config, layout_of(shape, layout, param_layout), Compute(**compute))
    params = model.init(0).params()
    noise = perturbed({n: jax.device_put(p, jax.devices()[0]) for n, p in true_rows(params).items()})
    params = {n: jax.device_put(np.asarray(noise[n]), p.sharding) for n, p in params.items()}

    def loss(params):
        losses = model.bind(params).loss(Batch(TOKENS, TARGETS), dropout_key=jax.random.key(3))
        return losses.total() / losses.scored, losses.sums

    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()
    (loss, sums), grads = step(params)
    means = {name: np.asarray(total) / np.asarray(count) for name, (total, count) in sums.items()}
    return float(loss), means, true_rows(grads), step.as_text()


LAYOUTS = {
    "experts where the batch is": ("data:4", "batch:data, experts:data", "", "none"),
    "with embd, stored too": ("x:2, y:2, z:2", "batch:x+y, experts:y, embd:z", "embd:z+x", "full"),
    "with sequence and width": ("x:2, y:2, z:2", "sequence:x, experts:x, expert_mlp:y, mlp:y", "", "names"),
    "tokens on each of the experts' devices": ("x:2, y:4", "batch:x, heads:y, experts:y+x", "", "none"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_as_one_device(name):
    *layout, remat = LAYOUTS[name]
    program = check_same("places", *layout, remat=remat)
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in COLLECTIVES}
    assert counts["all-to-all"]
    if name == "experts where the batch is":  # there and back, and so for gradients
        assert counts == {"all-to-all": 4, "all-gather": 0}


@pytest.mark.parametrize(
    "experts, layout",
    [
        # a part of a row has 12 tokens or 6, and an expert is 16 wide: tokens travel
        ("dropless", ("x:2, y:2, z:2", "sequence:x+y, experts:y, expert_mlp:z, mlp:z")),
        ("tries", ("x:2, y:2, z:2", "batch:z, sequence:x, experts:x+y, mlp:y", "embd:z")),
        # 24 tokens a device: experts come
        ("dropless", ("x:2, y:4", "batch:y, sequence:x, experts:x", "embd:y")),
    ],
)
def test_rows_in_parts_give_the_same_as_whole_ones(experts, layout):
    """Dropless experts have no groups that would have to lie within a part."""
    check_same(experts, *layout, remat="names")


def test_what_takes_all_has_rows_in_any_parts():
    """Evaluation: groups of 6 tokens would not lie within parts of 4, nor does that matter."""
    found = []
    for layout in (layout_of("data:1"), layout_of("row:6", "sequence:row")):
        model = noisy(mixed(group_size=6), layout)
        sums = jax.jit(lambda p, model=model: model.bind(p).loss(Batch(TOKENS, TARGETS)).sums)(model.params())
        found.append({name: np.divide(*map(np.asarray, pair)) for name, pair in sums.items()})
    for name, mean in found[0].items():
        np.testing.assert_allclose(found[1][name], mean, rtol=1e-5, atol=1e-7, err_msg=name)


def check_same(experts, *layout, remat):
    """That loss, sums and gradients are those of one device; gives the program."""
    loss_1, means_1, grads_1, _ = measured(experts=experts)
    loss, means, grads, program = measured(*layout, experts=experts, remat=remat)
    assert abs(loss - loss_1) <= 1e-5 * loss_1
    for key, mean in means.items():
        np.testing.assert_allclose(mean, means_1[key], rtol=1e-5, atol=1e-7, err_msg=key)
    for key, grad in grads.items():
        np.testing.assert_allclose(grad, grads_1[key], atol=1e-5 * np.abs(grads_1[key]).max(), err_msg=key)
    return program


def test_what_is_reported():
    _, means, *_ = measured()
    assert means["expert_load"].shape == (2, E)  # the layers with experts, in their order
    assert ((means["expert_load"].sum(axis=1) > 1.2) & (means["expert_load"].sum(axis=1) <= 2)).all()
    assert 0.2 < means["expert_dropped"] < 0.9 and 0 < means["router_entropy"] < np.log(E)
    assert means["balance_loss"] > 1 and means["router_z_loss"] > 0


def test_decoding_with_the_cache_and_scoring_at_once_agree():
    """With rows longer than an expert is wide, and with one token."""
    model = noisy(mixed(["global"]))
    prompt = TOKENS[0, :18].tolist()
    found = neojax.generate(model, prompt, max_new_tokens=6, temperature=0, eos=())
    scores = np.asarray(model(np.array([prompt + found], np.int32)))[0]
    assert found == scores[17:-1].argmax(axis=-1).tolist()


def choose(logits, key=None, real=None, **keys):
    experts = Experts(mixed(**keys), {"embd": 32, "routes": E, "experts": E, "expert_mlp": 16})
    logits = jnp.asarray(logits, jnp.float32)
    noise = None
    if key is not None:
        shape = logits.shape if keys.get("sampled") else (*logits.shape[:2], 1)
        noise = (jax.random.gumbel if keys.get("sampled") else jax.random.uniform)(jax.random.key(key), shape)
    return experts.choose(logits, noise, real)


def test_the_second_expert_is_drawn_by_its_share():
    logits = np.log(np.full((1, 4000, E), 1e-9))
    logits[..., 2], logits[..., 5] = np.log(0.9), np.log(0.1)
    drawn, _ = choose(logits, key=0, second="random")  # a share of 0.1 over the threshold, 0.2
    assert (np.asarray(drawn.expert) == [2, 5]).all() and np.asarray(drawn.taken[..., 0]).all()
    assert abs(float(jnp.mean(drawn.taken[..., 1])) - 0.5) < 0.03
    assert np.asarray(choose(logits, second="random")[0].taken).all()  # nothing is drawn without a key
    for rule in ("threshold", "none"):
        assert not np.asarray(choose(logits, second=rule)[0].taken[..., 1]).any()
    np.testing.assert_allclose(drawn.gate[0, 0], [0.9, 0.1], rtol=1e-5)


def test_one_expert_is_taken_at_its_probability_the_likeliest_or_drawn():
    logits = np.broadcast_to(np.log([0.6, 0.3, 0.1, *[1e-9] * 5]), (1, 4000, E))
    best, _ = choose(logits, top_k=1)
    assert (np.asarray(best.expert) == 0).all()
    np.testing.assert_allclose(best.gate, 0.6, rtol=1e-5)
    drawn, _ = choose(logits, key=1, top_k=1, sampled=True)
    shares = np.bincount(np.asarray(drawn.expert).ravel(), minlength=E) / 4000
    np.testing.assert_allclose(shares[:3], [0.6, 0.3, 0.1], atol=0.03)


def test_padding_goes_to_no_expert_and_is_not_counted():
    logits = np.random.default_rng(0).normal(size=(2, 6, E))
    real = np.array([[True] * 4 + [False] * 2, [False] * 6])
    choice, sums = choose(logits, real=jnp.asarray(real))
    _, own = choose(logits[:1, :4])
    assert (np.asarray(choice.taken).any(axis=-1) == real).all()
    for name, (total, count) in own.items():
        np.testing.assert_allclose(sums[name][0], total, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(sums[name][1], count, err_msg=name)


def test_an_even_spread_has_the_least_balance_loss():
    logits = 50.0 * np.eye(E)[None]
    np.testing.assert_allclose(np.divide(*choose(logits)[1]["balance_loss"]), 1, rtol=1e-5)
    logits[..., :] = logits[:, :1]
    np.testing.assert_allclose(np.divide(*choose(logits)[1]["balance_loss"]), E, rtol=1e-5)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"number": 0, "layers": []}, "experts.width=16 needs model.experts.number"),
        ({"layers": [4]}, r"layers=\[4\]: expected numbers of layers, 0 to 3"),
        ({"top_k": 9}, "top_k=9 is more than"),
        ({"top_k": 1, "second": "random"}, "second=random is for model.experts.top_k=2"),
        ({"sampled": True}, "sampled=true is for model.experts.top_k=1"),
        ({"tries": 2}, "tries=2 is for model.experts.top_k=1"),
        ({"top_k": 1, "tries": 9}, "tries=9 is more than"),
        ({"activation": "prelu"}, "prelu"),
    ],
)
def test_what_does_not_go_together_is_one_line(keys, message):
    with pytest.raises(NeojaxError, match=message) as error:
        mixed(**keys)
    assert "\n" not in str(error.value)


def test_an_expert_has_places_by_its_factor_and_at_least_so_many():
    def places(tokens, **keys):
        experts = Experts(mixed(**keys), {"embd": 32, "routes": E, "experts": E, "expert_mlp": 16})
        return experts.capacity(tokens)

    assert [places(tokens) for tokens in (100, 20, 4)] == [20, 4, 1]  # 0.8 * 2 / 8 of them, at least one
    assert [places(tokens, min_capacity=6) for tokens in (100, 20, 4)] == [20, 6, 4]


def test_groups_that_would_span_devices_are_refused():
    config = mixed(group_size=24)
    cases = ((24, 1), (48, 2), (25, 1))
    assert [groups_of(config.experts, length, parts) for length, parts in cases] == [1, 2, 5]
    split = layout_of("x:2", "sequence:x")
    with pytest.raises(NeojaxError, match=r"into 2 parts.* give model\.experts\.group_size=12"):
        check_groups(config, split, [48, 24])
    check_groups(config, split, [48])
    check_groups(mixed(group_size=None, dropless=True), split, [24])
    with pytest.raises(NeojaxError, match="into 2 parts"):  # before a run begins
        check_fit(Transformer(mixed(group_size=None), split), TrainConfig())


def test_low_rank_additions_are_not_for_experts():
    lora = LoraConfig(rank=2, targets=("experts.up",))
    with pytest.raises(NeojaxError, match="experts"):
        Adapters.of(lora, None, Transformer(mixed()).dims())


def test_on_a_tpu_slice_only_places_travel():
    """Places of experts by all-to-all, sums of gradients, no token and no expert whole."""
    pytest.importorskip("libtpu")
    config = tiny(**SMALL, **{"experts.number": E, "experts.width": 256})
    layout = make_layout(MeshConfig("data:8", "batch:data, experts:data"), tpu_devices("v5e:2x4"))
    model = Transformer(config, layout, Compute(dtype="bfloat16"))

    def loss(params, tokens):
        return model.bind(params).loss(Batch(tokens, tokens), dropout_key=jax.random.key(0)).total()

    tokens = jax.ShapeDtypeStruct((8, 128), jnp.int32, sharding=layout.sharding(("batch", "sequence")))
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)  # the same collectives in less time
    try:
        with jax.set_mesh(layout.mesh):
            program = jax.jit(jax.grad(loss)).lower(model.stored(), tokens).compile().as_text()
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in COLLECTIVES}
    assert counts == {"all-to-all": 4, "all-gather": 0}
    shapes = re.findall(r"bf16\[([\d,]+)\]\S* all-to-all", program)
    assert [math.prod(map(int, shape.split(","))) for shape in shapes] == [
        E * 40 * 128
    ] * 4  # 1.25 * 2 * 128 / E
