"""Rotary positions of a config.json turn by as much as in transformers, in its keys of today and before."""

import json

import numpy as np
import pytest

from neojax.convert.hf_config import read_config, to_json
from neojax.errors import NeojaxError
from neojax.models.positions import frequencies

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
}


def read(folder, **keys):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **keys}))
    return read_config(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_features_turn_as_in_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    said = {**KINDS[kind], "rope_theta": 5000.0}
    model = read(tmp_path, rope_parameters=said)
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**SIZES, rope_parameters=dict(said)))
    np.testing.assert_allclose(
        frequencies(model.positions, model.head_dim), theirs.inv_freq.numpy(), rtol=1e-6
    )
    out = to_json(model)
    assert read(tmp_path, **out) == read(tmp_path, **{**out, "rope_parameters": None})  # as before version 5
    assert read(tmp_path, **out).positions == model.positions


def test_some_features_of_llama3_turn_as_far_as_without_and_others_less(tmp_path):
    turns = {
        kind: frequencies(read(tmp_path, rope_scaling=said).positions, 32) for kind, said in KINDS.items()
    }
    ratio = turns["llama3"] / turns["default"]
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 8) and np.all(np.diff(ratio) <= 1e-7)
    np.testing.assert_allclose(turns["linear"], turns["default"] / 3, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_other_kinds_are_refused_by_name(kind, tmp_path):
    with pytest.raises(
        NeojaxError, match=f"rope_type '{kind}' is not supported, only default, linear, llama3"
    ):
        read(tmp_path, rope_scaling={"type": kind, "factor": 2.0})


def test_a_scaling_that_is_not_said_whole_is_named(tmp_path):
    said = {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}
    with pytest.raises(NeojaxError, match="rope_type llama3 without low_freq_factor"):
        read(tmp_path, rope_scaling=said)
