from types import SimpleNamespace

import pytest
from helpers import model_config

from neojax.config import ModelConfig
from neojax.layout.chips import PEAK_FLOPS, peak_flops
from neojax.models.flops import (
    flops_per_token,
    forward_flops_per_token,
    mfu,
    visible_keys,
)


def test_a_tiny_model_against_a_count_by_hand():
    model = model_config(n_layer=2, n_embd=4, n_head=2, n_ctx=4, n_vocab=10, window_size=2)
    per_sequence = 0
    for kind in ("global", "local"):
        for i in range(4):
            keys = i + 1 if kind == "global" else min(i + 1, 2)
            for rows, columns in [(4, 4)] * 4 + [(4, 16), (16, 4)]:  # q, k, v, output; the MLP
                per_sequence += 2 * rows * columns
            per_sequence += 2 * 2 * keys * 2 * 2  # scores and mixing, heads of 2
    per_sequence += 4 * 2 * 4 * 10  # the logits
    assert forward_flops_per_token(model) == per_sequence / 4
    assert flops_per_token(model) == 3 * per_sequence / 4


def test_of_experts_those_that_a_token_uses_are_counted():
    sizes = {"n_layer": 2, "n_embd": 4, "n_head": 2, "n_ctx": 4, "n_vocab": 10}
    experts = {"experts.number": 8, "experts.width": 6, "experts.layers": [1]}
    dense, mixed = (forward_flops_per_token(model_config(**sizes, **more)) for more in ({}, experts))
    assert mixed == dense - 2 * 2 * 4 * 16 + 2 * (4 * 8 + 2 * 2 * 4 * 6)


def test_the_125m_model_is_six_flops_a_parameter_plus_visible_attention():
    model = ModelConfig()
    matrices = (
        125_198_592 - 2048 * 768 - 12 * (4 * 768 + 768 + 3072 + 768) - 2 * 768
    )  # positions, norms, biases
    seen = 6 * (2049 / 2) + 6 * (sum(min(i + 1, 256) for i in range(2048)) / 2048)
    assert flops_per_token(model) == pytest.approx(6 * matrices + 3 * 4 * 768 * seen, rel=1e-12)
    assert flops_per_token(model, 512) < flops_per_token(model)


@pytest.mark.parametrize("length, window", [(1, 4), (3, 4), (4, 4), (9, 4), (9, 1)])
def test_visible_keys(length, window):
    assert visible_keys("local", length, window) == sum(min(i + 1, window) for i in range(length)) / length
    assert visible_keys("global", length, window) == (length + 1) / 2


def test_mfu_is_the_share_of_the_joint_peak():
    model = ModelConfig()
    chips = [SimpleNamespace(device_kind="TPU v5 lite")] * 4
    assert peak_flops(chips[0]) == PEAK_FLOPS["TPU v5 lite"] == 197e12
    assert mfu(4 * 197e12 / flops_per_token(model), model, chips) == pytest.approx(1)
    assert mfu(1e6, model, [SimpleNamespace(device_kind="cpu")]) is None
