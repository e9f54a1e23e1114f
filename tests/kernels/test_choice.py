"""The rule that says which attention kernel runs, its refusals, and what a run says of it."""

import jax.numpy as jnp
import pytest
from helpers import layout_of, tiny

from neojax.errors import NeojaxError
from neojax.kernels.choice import Call, choose, describe, of_layers

TPU = {"platform": "tpu", "capability": (0, 0)}
HOPPER = {"platform": "gpu", "capability": (9, 0)}
CPU = {"platform": "cpu", "capability": (0, 0)}


PARTS = {"split": ("sequence",), "parts": 8}


def call(where, **changes) -> Call:
    usual = {"split": (), "length": 2048, "head_dim": 128, "dtype": "bfloat16"}
    return Call(**{**usual, **where, **changes})


@pytest.mark.parametrize(
    "where, changes, kernel",
    [
        (TPU, {}, "splash"),
        (TPU, {"window": 256, "head_dim": 80, "dtype": "float32"}, "splash"),
        (TPU, {"length": 100}, "reference"),
        (TPU, {"dropout": True}, "reference"),
        (TPU, {"memory": True}, "reference"),
        (TPU, {"causal": False}, "reference"),
        (TPU, {"branches": True, "segments": True}, "blocked"),
        (HOPPER, {"branches": True, "window": 256}, "blocked"),
        (CPU, {"branches": True, "window": 64, "length": 256}, "reference"),
        (CPU, {**PARTS, "branches": True, "window": 256}, "ring"),
        (TPU, {**PARTS, "window": 256, "segments": True}, "splash"),
        (TPU, {**PARTS, "length": 1 << 20}, "splash"),
        (TPU, {**PARTS, "length": 1 << 21}, "ring"),
        (TPU, {**PARTS, "length": 1 << 21, "window": 256}, "splash"),
        (TPU, {**PARTS, "length": 1000, "window": 256}, "local"),
        (TPU, {**PARTS, "padded": True}, "ring"),
        (HOPPER, {**PARTS, "window": 256}, "local"),
        (TPU, {"split": ("sequence", "head_dim"), "window": 256}, "reference"),
        (CPU, {"split": ("sequence",), "window": 1024}, "ring"),
        (TPU, {"dtype": "float16", "window": 256}, "local"),
        (HOPPER, {"window": 256, "head_dim": 256}, "cudnn"),
        (HOPPER, {"capability": (8, 6), "head_dim": 256}, "blocked"),
        (HOPPER, {"capability": (7, 0)}, "blocked"),
        (HOPPER, {"capability": (0, 0)}, "blocked"),  # a GPU of another maker
        (HOPPER, {"dtype": "float32", "window": 256}, "local"),
        (HOPPER, {"head_dim": 100}, "blocked"),
        (HOPPER, {"dropout": True}, "reference"),
        (CPU, {}, "blocked"),
        (CPU, {"window": 256}, "local"),
        (CPU, {"window": 1024}, "blocked"),
        (CPU, {"length": 256}, "reference"),
        (TPU, {"segments": True, "window": 256}, "splash"),
        (HOPPER, {"segments": True}, "blocked"),
        (HOPPER, {"segments": True, "window": 256}, "local"),
        (HOPPER, {"segments": True, "window": 256, "length": 2047}, "local"),
        (HOPPER, {"causal": False, "segments": True}, "reference"),
        (HOPPER, {"causal": False, "window": 256}, "local"),
        (HOPPER, {"causal": False, "window": 700}, "reference"),
        (HOPPER, {"causal": False, "padded": True}, "reference"),
        (HOPPER, {"padded": True}, "cudnn"),
        (CPU, {"segments": True}, "blocked"),
    ],
)
def test_auto_takes_the_devices_own_kernel_or_falls_back_and_says_why(where, changes, kernel):
    choice = choose("auto", call(where, **changes))
    assert choice.kernel == kernel
    own = {"tpu": "splash", "gpu": "cudnn"}.get(where["platform"])
    assert bool(choice.because) == (own is not None and own != kernel)


@pytest.mark.parametrize("where", [TPU, HOPPER, CPU])
def test_rows_in_parts_go_round_unless_only_the_reference_can(where):
    def chosen(**changes):
        return choose("auto", call(where, **{**PARTS, **changes})).kernel

    assert chosen(causal=False, window=700) == "ring"
    assert chosen(dropout=True) == chosen(memory=True, window=256) == "ring"
    assert chosen(split=("sequence", "head_dim"), dropout=True) == "reference"
    assert choose("auto", call(CPU, split=("memory_length",))).kernel == "reference"


@pytest.mark.parametrize("where", [TPU, HOPPER, CPU])
def test_xla_by_name_runs_anything_anywhere(where):
    assert choose("xla", call(where, window=256)).kernel == "local"
    assert choose("xla", call(where, window=256, dropout=True, dtype="float16")).kernel == "reference"


@pytest.mark.parametrize(
    "wanted, where, changes, named",
    [
        ("splash", CPU, {}, "devices are cpu"),
        ("splash", TPU, {"dropout": True}, "attention.dropout"),
        ("splash", TPU, {"dtype": "float16"}, "float16"),
        ("splash", TPU, {**PARTS, "length": 1000}, "multiple of 128, not 125"),
        ("cudnn", HOPPER, PARTS, "splits sequence"),
        ("cudnn", TPU, {}, "devices are tpu"),
        ("cudnn", HOPPER, {"capability": (7, 5)}, "7.5"),
        ("cudnn", HOPPER, {"head_dim": 100}, "head_dim"),
        ("cudnn", HOPPER, {"dtype": "float32"}, "float32"),
        ("cudnn", HOPPER, {"segments": True, "length": 2047}, "even length, not 2047"),
        ("cudnn", HOPPER, {"causal": False, "padded": True}, "not causal"),
        ("splash", TPU, {"causal": False}, "not causal"),
    ],
)
def test_a_kernel_by_name_is_refused_in_one_line_where_it_cannot(wanted, where, changes, named):
    with pytest.raises(NeojaxError, match=named) as caught:
        choose(wanted, call(where, **changes))
    assert f"train.attention_kernel={wanted}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"segments": True}, {"segments": True, "window": 256}, {"causal": False}]
)
def test_cudnn_by_name_takes_what_auto_leaves_to_xla(changes):
    assert choose("cudnn", call(HOPPER, **changes)).kernel == "cudnn"
    assert "name it" in choose("auto", call(HOPPER, **changes)).because


def test_splash_by_name_takes_short_sequences():
    assert choose("splash", call(TPU, length=5)).kernel == "splash"


def test_dropout_and_learned_keys_hinder_global_layers_alone():
    config = tiny(attn_dropout=0.1, num_mem_kv=2)
    chosen = of_layers("auto", config, layout_of("data:1"), jnp.float32)
    assert {kind: choice.kernel for kind, choice in chosen.items()} == {
        "global": "reference",
        "local": "local",
    }
    assert describe(chosen).startswith("global attention: xla, reference (model.attention.memory_slots")
    assert describe(chosen).endswith("local attention: xla, local")
    assert of_layers("auto", tiny(attention_types=("linear",)), layout_of("data:1"), jnp.float32) == {}


def test_documents_that_stand_apart_are_known_to_the_rule_of_a_whole_model():
    layout, dtype = layout_of("data:1"), jnp.float32
    causal = tiny(attention_types=("linear", "global"))
    assert set(of_layers("auto", causal, layout, dtype, segments=True)) == {"global"}
    both_ways = tiny(attention_types=("linear",), causal=False)
    assert of_layers("auto", both_ways, layout, dtype) == {}
    with pytest.raises(NeojaxError, match="one sum for the whole row"):
        of_layers("auto", both_ways, layout, dtype, segments=True)
