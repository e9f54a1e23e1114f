"""Linear attention over rows that are split over devices equals that of one: values, gradients and state."""

import re
from functools import cache

import jax
import numpy as np
import pytest
from helpers import layout_of

from neojax.kernels import linear_attention as linear
from neojax.layout import named

LENGTH = 48
LAYOUTS = {
    "one": ("x:1", ""),
    "eight parts": ("x:8", "sequence:x"),
    "three parts and rows": ("x:2, y:3", "batch:x, sequence:y"),
    "two axes and heads": ("x:2, y:2, z:2", "heads:x, sequence:y+z"),
    "one axis for rows and heads": ("x:2", "sequence:x, heads:x"),
    "keys": ("x:2", "memory_length:x"),
}
STATE = "batch heads key_dim head_dim", "batch heads key_dim"


def program(layout, length=LENGTH, is_apart=False, goes_on=False):
    """The jitted values and gradients of linear attention under `layout`, and its operands there."""
    layout, rng = layout_of(*LAYOUTS[layout]), np.random.default_rng(0)
    q, k, v, pull = rng.normal(size=(4, 2, length, 2, 8)).astype("f4")
    state = rng.random((2, 2, 8, 8)).astype("f4"), 8 * rng.random((2, 2, 8)).astype("f4")
    # of parts some are of several segments, and some segments are of several parts
    segments = np.array(
        [[1] * 3 + [2] + [3] * 30 + [4] * (length - 34), [1] * 23 + [2] * (length - 23)], "i4"
    )
    with named.use_layout(layout):
        rows = [named.lay(x, "batch sequence heads head_dim") for x in (q, k, v, pull)]
        segments = named.lay(segments, "batch sequence", "heads") if is_apart else None
        state = tuple(map(named.lay, state, STATE)) if goes_on else None

    def total(q, k, v, state, pull):
        with named.use_layout(layout):
            y, state = linear.attention(q, k, v, segments=segments, state=state)
        return (y * pull).sum() + sum((x**2).sum() for x in state) / 1e4, (y, state)

    which = (0, 1, 2, 3) if goes_on else (0, 1, 2)
    return jax.jit(jax.value_and_grad(total, which, has_aux=True)), (*rows[:3], state, rows[3])


@cache
def measured(layout, **how):
    function, operands = program(layout, **how)
    (_, found), grads = function(*operands)
    return [np.asarray(x) for x in jax.tree.leaves((found, grads))]


@pytest.mark.parametrize(
    "layout, how",
    [
        ("eight parts", ()),
        ("eight parts", ("is_apart", "goes_on")),
        ("three parts and rows", ("is_apart",)),
        ("two axes and heads", ("goes_on",)),
        ("one axis for rows and heads", ("is_apart",)),
        ("keys", ()),
    ],
)
def test_equals_one_device(layout, how, monkeypatch):
    monkeypatch.setattr(linear, "CHUNK", 5)
    how = dict.fromkeys(how, True)
    for ours, theirs in zip(measured(layout, **how), measured("one", **how), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_a_device_holds_no_scores_of_all_keys_and_sends_states_alone(monkeypatch):
    """Its 64 queries meet no more keys than a chunk; three hops of the parts' sums, and one to begin with."""
    monkeypatch.setattr(linear, "CHUNK", 16)
    function, operands = program("eight parts", length=512)
    text = function.lower(*operands).compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
    assert not any(512 in shape for shape in shapes)
    assert max(map(np.prod, shapes)) <= 2 * 2 * 64 * 16
    assert " all-gather(" not in text and " all-to-all(" not in text
    sent = set(re.findall(r"= f32\[([\d,]+)\]\S* collective-permute", text))
    assert sent == {"2,2,8,8", "2,2,8"}
