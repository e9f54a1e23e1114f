"""On a GPU or TPU: what eight fake CPU devices cannot show. NEOJAX_TEST_DEVICE=cpu runs it on a CPU, to try
the tests."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of, perturbed, random_tokens, tiny

import neojax
from neojax.config import TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import Share
from neojax.layout.mesh import single_device
from neojax.models import Transformer
from neojax.training.optimizer import make_optimizer
from neojax.training.state import init_state
from neojax.training.step import make_train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.tpu,
    pytest.mark.skipif(
        jax.default_backend() == "cpu" and os.environ.get("NEOJAX_TEST_DEVICE") != "cpu",
        reason="no GPU or TPU",
    ),
]


def model_on(layout, **how) -> Transformer:
    model = Transformer(tiny(), layout, **how).init(0)
    return model.bind(perturbed(model.params()))


def test_loss_and_gradients_are_those_of_the_cpu():
    tokens = random_tokens()
    found = []
    for device in (jax.devices()[0], jax.local_devices(backend="cpu")[0]):
        model = model_on(single_device(device))
        with jax.set_mesh(model.layout.mesh), jax.default_matmul_precision("highest"):
            objective = jax.jit(
                jax.value_and_grad(
                    lambda params, model=model: model.bind(params).loss(Batch(tokens, tokens))[0]
                )
            )
            found.append(jax.tree.map(np.asarray, objective(model.params())))
    (ours, gradients), (theirs, others) = found
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, others[name], atol=1e-3 * np.abs(others[name]).max(), err_msg=name
        )


def test_products_kept_in_the_hosts_memory_give_the_same_step():
    batch = random_tokens(length=25)
    ends = []
    for remat in ("names", "offload"):
        model = model_on(layout_of("data:1"), remat=remat)
        train = TrainConfig(schedule="constant", warmup_steps=0, deterministic=True)
        optimizer = make_optimizer(train, model.dims())
        with jax.set_mesh(model.layout.mesh):
            step = make_train_step(model, optimizer, train)
            rows = Share(model.layout, len(batch)).place(Batch(batch[:, :-1], batch[:, 1:]))
            state, metrics = step(init_state(model, optimizer), rows, jnp.int32(0))
            ends.append((float(metrics["loss"]), jax.tree.map(np.asarray, state.params)))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-5)
    for name, value in ends[0][1].items():
        np.testing.assert_allclose(value, ends[1][1][name], atol=2e-3, err_msg=name)


def test_greedy_decoding_takes_the_likeliest_token_of_the_whole_sequence():
    with jax.default_matmul_precision("highest"):
        model = model_on(layout_of("data:1"))
        prompt = random_tokens(1, 5)[0].tolist()
        new = neojax.generate(model, prompt, max_new_tokens=12, temperature=0, eos=())
        logits = np.asarray(model(np.array([prompt + new], np.int32)))[0]
    for place_, token in enumerate(new, start=len(prompt) - 1):
        assert logits[place_, token] >= logits[place_].max() - 1e-3


def test_every_compiler_option_of_the_platform_is_known_here_but_other_releases_names_of_pipelining():
    from neojax.training.compiler import OPTIONS, compiler_options

    device = jax.devices()[0]
    table = {**OPTIONS.get(device.platform, {}), **OPTIONS.get(device.device_kind, {})}
    unknown = set(table) - set(compiler_options(single_device(device)))
    assert all("pipeline" in name for name in unknown) and len(unknown) <= 3
