"""The grammar of meshes and layouts, and the strict resolver: each mistake is one line that says what to
do."""

import jax
import pytest
from helpers import layout_of
from jax.sharding import AxisType, PartitionSpec

from neojax.config import MeshConfig
from neojax.errors import NeojaxError
from neojax.layout.devices import use_cpu_devices
from neojax.layout.mesh import abstract_layout, make_layout
from neojax.layout.names import parse_layout, parse_pairs, parse_shape


def refused(words, call, *args, **kwargs):
    with pytest.raises(NeojaxError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, (word, text)


@pytest.mark.parametrize("text", ["x:4,y:2", "x:4, y:2", "x:4 y:2", "x:4;y:2", "x:4.y:2", " x:4 ,\n y:2 ,"])
def test_every_separator_of_mesh_tensorflow(text):
    assert parse_pairs(text, "mesh.shape") == {"x": "4", "y": "2"}
    assert list(parse_shape(text).items()) == [("x", 4), ("y", 2)]


def test_names_axes_and_aliases():
    axes = ("x", "y")
    layout = parse_layout("batch:x+y, intermediate_expanded:y; embed_sequence:x", axes, "mesh.layout")
    assert layout == {"batch": ("x", "y"), "mlp": ("y",), "positions": ("x",)}
    assert parse_layout("vocab:x", axes, "k") == parse_layout("n_vocab:x", axes, "k")
    assert parse_layout("head_dim:x", axes, "k") == parse_layout("features_per_head:x", axes, "k")
    assert parse_layout("", axes, "k") == {}


@pytest.mark.parametrize(
    "text, words",
    [
        ("batch", ["mesh.layout", "'batch'", "name:value"]),
        ("batch:", ["mesh.layout", "name:value"]),
        ("btach:x", ["mesh.layout", "btach", "did you mean batch"]),
        ("batch:z", ["mesh.layout", "batch", "z", "no such axis", "x, y"]),
        ("batch:x, batch:y", ["mesh.layout", "batch is given twice"]),
        ("mlp:x, intermediate_expanded:y", ["intermediate_expanded", "mlp", "given already"]),
        ("batch:x+x", ["batch", "one axis twice"]),
        ("rank:x", ["rank", "cannot be split"]),
        ("vocab:n_vocab", ["vocab", "n_vocab", "no such axis"]),
    ],
)
def test_mistakes_in_a_layout(text, words):
    refused(words, parse_layout, text, ("x", "y"), "mesh.layout")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["mesh.shape", "empty"]),
        ("x:0", ["axis x", "'0'"]),
        ("x:two", ["axis x", "'two'"]),
        ("x:-2", ["axis x", "'-2'"]),
        ("x:-1, y:-1", ["only one axis can be -1"]),
        ("x:2, x:4", ["x is given twice"]),
        ("x=2", ["name:value"]),
    ],
)
def test_mistakes_in_a_shape(text, words):
    refused(words, parse_shape, text)


@pytest.mark.parametrize(
    "shape, expected",
    [("data:-1", (8,)), ("data:-1, model:2", (4, 2)), ("a:2, b:-1, c:2", (2, 2, 2)), ("a:8, b:-1", (8, 1))],
)
def test_minus_one_takes_the_devices_that_are_left(shape, expected):
    mesh = make_layout(MeshConfig(shape, ""), jax.devices()[:8]).mesh
    assert mesh.devices.shape == expected
    assert set(mesh.axis_types) == {AxisType.Explicit}
    assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in jax.devices()[:8])


@pytest.mark.parametrize("shape", ["data:16", "data:3", "data:4", "data:3, model:-1", "data:16, model:-1"])
def test_a_mesh_that_does_not_match_the_devices(shape):
    config, words = MeshConfig(shape, ""), ["mesh.shape", shape, "8", ":-1"]
    refused([*words, "mesh.cpu_devices="], make_layout, config)
    refused([*words, "another machine"], make_layout, config, jax.devices()[:8])


def test_fake_devices():
    assert make_layout(MeshConfig("data:-1", "", cpu_devices=4)).mesh.size == 4
    refused(["mesh.cpu_devices=64", "8"], use_cpu_devices, 64)


@pytest.mark.parametrize(
    "text, words", [("model:2", ["model:2", "data:8"]), ("data:3", ["data:3", "factor"])]
)
def test_mistakes_in_a_dcn_shape(text, words):
    refused(
        ["mesh.dcn_shape", *words], make_layout, MeshConfig("data:8", "", dcn_shape=text), jax.devices()[:8]
    )


LAYOUT = layout_of(
    "data:2, model:2, x:2", "batch:data, heads:model, mlp:model+x, vocab:x", "embd:data, vocab:x+data"
)


def test_specs_follow_the_names():
    assert LAYOUT.spec(("batch", "sequence", "embd")) == PartitionSpec("data", None, None)
    assert LAYOUT.spec(("embd", "mlp")) == PartitionSpec(None, ("model", "x"))
    assert LAYOUT.spec(("embd", "mlp"), stored=True) == PartitionSpec("data", ("model", "x"))
    assert LAYOUT.spec(("batch", "sequence", "heads", "head_dim"))[2] == "model"
    assert LAYOUT.split("mlp") == 4 and LAYOUT.split("embd") == 1 and LAYOUT.split("embd", stored=True) == 2
    assert LAYOUT.without("mlp").spec(("mlp",)) == PartitionSpec(None)


def test_the_stored_layout_lies_on_top_of_the_used_one():
    assert LAYOUT.axes("heads", stored=True) == ("model",)
    assert LAYOUT.axes("vocab") == ("x",) and LAYOUT.axes("vocab", stored=True) == ("x", "data")


def test_the_vocabulary_is_padded_for_both_layouts():
    assert LAYOUT.padded_vocab(61) == 64 and LAYOUT.padded_vocab(64) == 64
    assert layout_of("data:1").padded_vocab(61) == 61


@pytest.mark.parametrize(
    "dims, shape, stored, words",
    [
        ("vocab mlp", (8, 8), False, ["mesh.layout", "vocab", "mlp", "axis x", "another axis"]),
        ("vocab embd", (8, 8), True, ["mesh.param_layout", "vocab", "embd", "axis data"]),
        ("embd mlp", (8, 6), False, ["mesh.layout", "mlp", "model+x", "4 parts", "size 6", "leave mlp out"]),
        ("embd", (7,), True, ["mesh.param_layout", "embd", "data", "size 7"]),
    ],
)
def test_what_cannot_be_laid_out_names_tensor_dimension_and_remedy(dims, shape, stored, words):
    refused(
        ["parameter p", f"[{dims}]", *words],
        LAYOUT.spec,
        dims.split(),
        shape,
        stored=stored,
        what="parameter p",
    )


def test_a_mesh_that_is_not_here_can_be_described():
    layout = abstract_layout(MeshConfig("data:256, model:16", "batch:data", "embd:data"))
    assert layout.mesh.size == 4096 and layout.split("embd", stored=True) == 256


def test_equal_layouts_hash_alike_whatever_the_order_of_their_dimensions():
    same = [
        layout_of("data:2, model:2", text, "embd:data")
        for text in ("batch:data, mlp:model", "mlp:model, batch:data")
    ]
    assert same[0] == same[1] and hash(same[0]) == hash(same[1])
    others = [
        layout_of("data:2, model:2", "batch:data, mlp:data", "embd:data"),
        layout_of("data:2, model:2", "batch:data, mlp:model"),
        layout_of("data:2, tensor:2", "batch:data, mlp:tensor", "embd:data"),
    ]
    assert len({*same, *others}) == 4
