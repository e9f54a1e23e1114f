"""Names of the layout that nothing of the model has."""

import pytest
from helpers import layout_of, tiny

from neojax.models import Transformer
from neojax.models.fit import without_effect

SHAPE = "x:4, y:2"
EXPERTS = {"experts.number": 4, "experts.width": 8}


@pytest.mark.parametrize(
    "keys, layout, param_layout, idle, lines",
    [
        ({}, "batch:x, heads:y", "embd:x", "", []),
        ({}, "batch:x, memory_length:y", "", "", []),  # of activations alone
        ({}, "batch:x, experts:y", "", "axis y (2 parts) experts alone", []),
        ({}, "batch:x", "expert_mlp:y", "axis y (2 parts) expert_mlp alone", []),
        ({"attention_types": ["none"]}, "batch:x, memory_length:y", "", "memory_length alone", []),
        (EXPERTS, "batch:x, experts:y", "", "", []),
        (EXPERTS, "batch:x, mlp:y", "", "mlp alone", []),  # every layer has experts in its place
        ({}, "batch:x, experts:y, heads:y", "", "", ["splits experts, which this model"]),
        ({}, "batch:x", "", "", ["axis y, over which nothing is split: its 2 parts"]),
        ({"positions.kind": "rotary"}, "batch:x, positions:y, vocab:y", "", "", ["splits positions"]),
    ],
)
def test_what_the_model_lacks_is_told_and_no_axis_is_given_that_alone(
    keys, layout, param_layout, idle, lines
):
    found, told = without_effect(Transformer(tiny(**keys), layout_of(SHAPE, layout, param_layout)))
    assert idle in found and bool(found) == bool(idle)
    assert len(told) == len(lines) and all(part in line for part, line in zip(lines, told, strict=True))


def test_an_axis_of_one_device_may_be_given_anything():
    assert without_effect(Transformer(tiny(), layout_of("x:4, y:1", "batch:x, experts:y"))) == ("", [])
