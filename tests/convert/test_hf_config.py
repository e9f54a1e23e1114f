"""config.json of GPT-Neo and GPT-2: every key is carried over, older and newer files are read, the rest is
named."""

import json
import math
import re

import pytest
from helpers import model_config

from neojax.config import ModelConfig, describe, replaced, value_at
from neojax.config.spelling import FLAT
from neojax.convert.hf_config import is_hf_dir, read_config, to_json
from neojax.errors import NeojaxError
from neojax.models import Transformer

NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
}
LAYERS = ["global", "local", "global", "local"]


def read(tmp_path, raw):
    (tmp_path / "config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return read_config(tmp_path)


def without(*keys, **changes):
    return {k: v for k, v in NEO.items() if k not in keys} | changes


def test_the_published_125m_config(shared_data, tmp_path):
    model = read(tmp_path, (shared_data / "hf-configs" / "gpt-neo-125m.config.json").read_text())
    assert model.attention_layers == ModelConfig().attention_layers
    assert model == model_config(attention_types=model.attention.types)


@pytest.mark.parametrize(
    "raw",
    [
        without(attention_layers=LAYERS, architectures=["GPTNeoForCausalLM"]),
        without("attention_types", attention_layers=LAYERS),
        without("attention_types"),
        without("model_type"),
        without("model_type", "attention_types", architectures=["GPTNeoForCausalLM"]),
        without("num_layers", "num_heads", num_hidden_layers=4, num_attention_heads=4),
    ],
    ids=["both", "layers only", "neither", "no model_type", "architecture only", "aliases"],
)
def test_older_and_newer_files_mean_the_same(raw, tmp_path):
    model = read(tmp_path, raw)
    assert (model.n_vocab, model.n_ctx, model.n_embd, model.n_layer, model.attention.heads) == (
        100,
        64,
        32,
        4,
        4,
    )
    assert model.attention_layers == tuple(LAYERS)
    assert model.family == "gpt_neo"


def test_every_key_of_gpt_neo_survives_a_round_trip(tmp_path):
    model = model_config(
        n_layer=3,
        n_embd=36,
        n_head=3,
        n_ctx=50,
        n_vocab=99,
        n_inner=17,
        attention_types=("local", "global", "global"),
        window_size=5,
        activation_function="relu",
        layer_norm_epsilon=1e-3,
        embed_dropout=0.1,
        attn_dropout=0.2,
        res_dropout=0.3,
        tie_word_embeddings=False,
    )
    again = read(tmp_path, to_json(model))
    assert again == replaced(model, "attention.types", again.attention.types)
    assert again.attention_layers == model.attention_layers


@pytest.mark.parametrize("size", [{"n_positions": 77, "n_ctx": 9}, {"max_position_embeddings": 77}])
def test_gpt2_has_its_own_keys_and_defaults(size, tmp_path):
    model = read(tmp_path, {"model_type": "gpt2", "n_layer": 2, **size})
    assert model.attention_layers == ("global", "global")
    assert model.attention.bias and model.attention.scale
    assert (model.n_vocab, model.n_embd, model.n_ctx, model.dropout) == (50257, 768, 77, 0.1)
    assert read(tmp_path, to_json(model)) == model


NEOX = {"model_type": "gpt_neox", "hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "keys, dims, base",
    [
        ({}, 6, 10000),
        ({"rotary_pct": 0.5, "rotary_emb_base": 500}, 12, 500),
        ({"rope_parameters": {"rope_theta": 5e5}}, 6, 5e5),
        (
            {"rotary_pct": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0, "rope_type": "default"}},
            24,
            10000,
        ),
    ],
)
def test_gpt_neox_rotates_what_files_of_either_kind_say(keys, dims, base, tmp_path):
    model = read(tmp_path, {**NEOX, **keys})
    assert (model.family, model.norm.order, model.embedding.tied) == ("gpt_neox", "parallel", False)
    assert (model.positions.rotary_dims, model.positions.base) == (dims, base)
    assert read(tmp_path, to_json(model)) == model
    assert read(tmp_path, {**NEOX, "use_parallel_residual": False}).norm.order == "pre"


def test_gpt_neox_has_biases_in_all_of_attention_or_in_none(tmp_path):
    model = read(tmp_path, {**NEOX, "attention_bias": False})
    assert (model.attention.bias, model.attention.out_bias) == (False, False)
    assert to_json(model)["attention_bias"] is False
    assert not any("bias" in name for name in Transformer(model).params() if "attn" in name)


def test_gpt_neox_rotates_as_many_features_after_export_as_before(tmp_path):
    """transformers makes them of a fraction of the head, cut off: int(head_dim * partial_rotary_factor)."""
    for width in range(2, 200, 2):
        config = model_config(family="gpt_neox", n_layer=1, n_head=1, n_embd=width)
        for dims in range(2, width + 1, 2):
            raw = to_json(replaced(config, "positions.rotary_dims", dims))
            assert int(width * raw["rope_parameters"]["partial_rotary_factor"]) == dims, (dims, width)
    assert read(tmp_path, raw).positions.rotary_dims == dims


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\]: expected keys and values"),
        ({"rotary_pct": "half"}, "rotary positions .*expected numbers"),
        ({"rotary_pct": 0.3}, "rotary_dims=7: expected an even number"),
        ({"attention_bias": "no"}, "attention_bias='no': expected true or false"),
        ({"use_parallel_residual": 1}, "use_parallel_residual=1: expected true or false"),
        ({"hidden_act": "geglu"}, "'geglu' is not one that neojax has"),
    ],
)
def test_what_a_gpt_neox_cannot_be_is_named(keys, words, tmp_path):
    with pytest.raises(NeojaxError, match=words):
        read(tmp_path, {**NEOX, **keys})


@pytest.mark.parametrize(
    "layers, width, heads, vocab, count",
    [
        (6, 128, 4, 50304, 14_067_712),  # Pythia 14M
        (12, 768, 12, 50304, 162_322_944),
        (36, 5120, 40, 50688, 11_846_072_320),
        (44, 6144, 64, 50432, 20_554_567_680),  # GPT-NeoX 20B
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(layers, width, heads, vocab, count):
    """Facts: the README of Pythia, and GPT-NeoX's."""
    model = model_config(family="gpt_neox", n_layer=layers, n_embd=width, n_head=heads, n_vocab=vocab)
    stored = Transformer(model).stored()
    assert sum(math.prod(value.shape) for value in stored.values()) == count


# A value of each option that is not its default; what only makes initial weights is left out.
OTHER = {
    "n_layer": 6, "n_embd": 64, "n_ctx": 17, "n_vocab": 99, "causal": False, "share_parameters": True, "dropout": 0.1,  # noqa: E501
    "attention.heads": 2, "attention.types": ("local",), "attention.window": 3, "attention.bias": True,
    "attention.out_bias": True, "attention.scale": True, "attention.memory_slots": 2,
    "attention.dropout": 0.1,
    "mlp.width": 20, "mlp.activation": "relu", "mlp.gated": True, "mlp.macaron": True,
    "norm.kind": "rezero", "norm.order": "post", "norm.epsilon": 1e-3, "positions.kind": "rotary", "positions.axial": (4, 6),  # noqa: E501
    "positions.rotary_dims": 4, "positions.base": 500.0, "positions.interleaved": True,
    "positions.scaling": "linear", "positions.scaling_factor": 2.0, "positions.scaling_context": 9,
    "positions.scaling_long": 0.5, "positions.scaling_short": 3.0,
    "attention.kv_heads": 2, "attention.head_dim": 6, "mlp.bias": False, "embedding.output_bias": True,
    "embedding.tied": False, "embedding.dropout": 0.1, "embedding.width": 8, "embedding.token_types": 3,
    "embedding.norm": True, "layer_groups": 2, "inner_layers": 2,
    "experts.number": 4, "experts.layers": (1,), "experts.width": 8, "experts.activation": "silu", "experts.top_k": 1,  # noqa: E501
    "experts.second": "random", "experts.second_threshold": 0.1, "experts.sampled": True, "experts.jitter": 0.1,  # noqa: E501
    "experts.capacity_factor": 2.0, "experts.group_size": 8, "experts.dropless": True,
    "experts.input_dropout": 0.1, "experts.min_capacity": 4, "experts.tries": 2,
    "experts.balance_loss": 0.1, "experts.z_loss": 0.1,
    "head.kinds": ("mlm",), "head.labels": ("no", "yes", "both"), "head.dropout": 0.2,
    "head.multilabel": True,
}  # fmt: skip
INITIAL = {"init.scale_by_depth", "init.scale_by_in", "init.std", "init.method", "init.output"}


def test_every_option_is_known_here():
    names = {name.removeprefix("model.") for name, *_ in describe() if name.startswith("model.")}
    assert names == OTHER.keys() | INITIAL | {"family"}


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "gpt_neox", "gpt_j", "llama", "bert", "albert"])
def test_every_option_is_exported_or_refused_by_name(family, option, tmp_path):
    usual = model_config(family=family, n_layer=2, n_embd=32, n_head=4, n_ctx=24)
    value = OTHER[option]
    if isinstance(value, bool):
        value = not value_at(usual, option)
    model = replaced(usual, option, value)
    try:
        raw = to_json(model)
    except NeojaxError as e:
        assert f"model.{option}" in str(e)
        assert "cannot be exported" in str(e) and "\n" not in str(e)
    else:
        again = read(tmp_path, raw)
        assert again.family == family
        if option == "attention.types":
            assert again.attention_layers == model.attention_layers
        elif option.startswith("positions.scaling_"):  # of which there is none
            assert again == read(tmp_path, to_json(usual))
        elif family == "gpt_neo" or option != "attention.window":  # which then sees nothing
            assert value_at(again, option) == value


@pytest.mark.parametrize(
    "changes", [{"attention_types": ("global", "linear")}, {"activation_function": "snake"}]
)
def test_a_value_that_transformers_has_not_is_refused_by_name(changes):
    with pytest.raises(NeojaxError, match=rf"{re.escape(FLAT[next(iter(changes))])}.* cannot be exported"):
        to_json(model_config(**changes))


def test_other_names_of_an_activation_are_understood(tmp_path):
    assert read(tmp_path, without(activation_function="gelu_pytorch_tanh")).mlp.activation == "gelu_new"


BAD = {
    "not JSON": ("{", "config.json is not valid JSON"),
    "a list": ("[]", "expected a JSON object, got list"),
    "another model": (
        without(model_type="opt"),
        "model_type 'opt'; neojax reads gpt_neo, gpt_neox, gptj, gpt2, albert, bert and llama",
    ),
    "nothing": ({}, "no model_type; neojax reads gpt_neo, gpt_neox, gptj, gpt2, albert, bert and llama"),
    "option": (
        {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx=true is not supported",
    ),
    "quantized": (
        without(quantization_config={"bits": 8}),
        'quantization_config={"bits": 8} is not supported',
    ),
    "activation": (
        without(activation_function="gelu_10"),
        "activation_function 'gelu_10' is not one that neojax has",
    ),
    "activations": (
        without(activation_function=["gelu"]),
        "activation_function ['gelu'] is not one that neojax has",
    ),
    "several numbers": (
        {
            "model_type": "gpt2",
            "architectures": ["GPT2ForSequenceClassification"],
            "problem_type": "regression",
            "num_labels": 2,
        },
        "problem_type regression with 2 labels is not supported; one number is",
    ),
    "class": (without("model_type", architectures=5), "architectures=5: expected a list of names"),
    "classes": ({"model_type": "bert", "num_labels": "three"}, "num_labels='three': expected how many"),
    "numbers of classes": (
        {"model_type": "bert", "id2label": {"0": "a"}, "label2id": {"a": [0]}},
        "label2id={'a': [0]}: expected names and numbers",
    ),
    "rotary": (
        {"model_type": "llama", "rope_parameters": {"rope_type": ["yarn"]}},
        "rope_type ['yarn'] is not supported",
    ),
    "layers": (without(num_layers=5), "gives 4 layers but model.n_layer is 5"),
    "disagree": (
        without(attention_layers=LAYERS[::-1]),
        "attention_types .* and attention_layers .* disagree",
    ),
    "kind": (without(attention_types=[[["global", "sparse"], 2]]), "unknown attention type 'sparse'"),
    "our kind": (
        without(attention_types=[[["global", "linear"], 2]]),
        "attention type 'linear' is not one of gpt_neo's",
    ),
    "number": (without(hidden_size="wide"), "model.n_embd: expected a whole number, got 'wide'"),
    "heads": (without(num_heads=5), "model.n_embd=32 is not a multiple of model.attention.heads=5"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_in_one_line(name, tmp_path):
    raw, message = BAD[name]
    with pytest.raises(NeojaxError) as e:
        read(tmp_path, raw)
    assert re.search(message if ".*" in message else re.escape(message), str(e.value))
    assert "\n" not in str(e.value)


def test_a_folder_without_config_is_no_hugging_face_directory(tmp_path):
    assert not is_hf_dir(tmp_path)
    with pytest.raises(NeojaxError, match=r"cannot read .*config\.json"):
        read_config(tmp_path)
