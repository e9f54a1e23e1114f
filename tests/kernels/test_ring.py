"""Attention over rows that are split over devices equals the reference on one: values and gradients."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of
from jax.extend.random import threefry2x32_p

from neojax.kernels import blocks, ring, split_splash
from neojax.kernels.attention import attention, reference
from neojax.kernels.dropout import bits_at
from neojax.kernels.masks import Branches
from neojax.layout import named

LENGTH = 48
LAYOUTS = {
    "eight parts": ("x:8", "sequence:x"),
    "three parts and rows": ("x:2, y:3", "batch:x, sequence:y"),
    "two axes and heads": ("x:2, y:2, z:2", "heads:x, sequence:y+z"),
}


@cache
def operands(length=LENGTH, heads=4, key_heads=2, batch=2):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, h, 8) for h in (heads, key_heads, key_heads, heads)]
    q, k, v, pull = (rng.normal(size=shape).astype("f4") for shape in shapes)
    segments = np.sort(rng.integers(1, 4, (batch, length)), axis=1).astype(np.int32)
    return q, k, v, pull, segments


def program(kernel, layout, length=LENGTH, is_apart=False):
    """The jitted values and gradients of `kernel` under `layout`, and its operands there."""
    q, k, v, pull, segments = operands(length)
    with named.use_layout(layout):
        four, two = named.sharding("batch sequence heads head_dim"), named.sharding("batch sequence")
    arrays = *(jax.device_put(x, four) for x in (q, k, v, pull)), jax.device_put(segments, two)

    def total(q, k, v, pull, segments):
        with named.use_layout(layout):
            y = kernel(q, k, v, segments=segments if is_apart else None)
        return jnp.sum(y * pull), y

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True)), arrays


def measured(*how, **more):
    function, arrays = program(*how, **more)
    (_, y), grads = function(*arrays)
    return [np.asarray(x) for x in (y, *grads)]


@pytest.mark.parametrize(
    "layout, window, causal, is_apart",
    [
        *(("eight parts", window, True, False) for window in (None, 7, 30)),
        *(("three parts and rows", window, True, True) for window in (None, 20)),
        *(("two axes and heads", window, False, True) for window in (None, 7, 20)),
        ("eight parts", 7, False, False),
        ("two axes and heads", None, True, False),
    ],
)
def test_equals_the_reference(layout, window, causal, is_apart, monkeypatch):
    """Windows of less than a part, of several, and of more than half a row; blocks of part of a piece."""
    monkeypatch.setattr(ring, "BLOCK", 2)
    how = {"window": window, "causal": causal}
    ours = measured(partial(attention, **how), layout_of(*LAYOUTS[layout]), is_apart=is_apart)
    theirs = measured(partial(reference, **how), layout_of("x:1"), is_apart=is_apart)
    for x, y in zip(ours, theirs):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("window, is_apart, lanes", [(None, True, 128), (None, False, 8), (100, False, 128)])
def test_splash_on_parts_equals_the_reference(window, is_apart, lanes, monkeypatch):
    """A window that reaches into the part before, a global layer with the heads of keys one at a time, narrow
    heads and such as fill the lanes."""
    monkeypatch.setattr(split_splash, "LANES", lanes)
    how, length = {"window": window}, 512
    kernel = partial(split_splash.attention, interpret=True, **how)
    ours = measured(kernel, layout_of("x:2, y:2", "batch:x, sequence:y"), length=length, is_apart=is_apart)
    theirs = measured(partial(reference, **how), layout_of("x:1"), length=length, is_apart=is_apart)
    for x, y in zip(ours, theirs):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


@cache
def asked(layout, what, length=LENGTH, causal=True, window=None):
    """The values and gradients of `attention`, of `what` among memory, dropout, branches and segments, as a
    jitted program and its operands."""
    layout, rng = layout_of(*LAYOUTS.get(layout, ("x:1", ""))), np.random.default_rng(1)
    q, k, v, pull, segments = operands(length, 4, 4 if "memory" in what else 2)
    learned = rng.normal(size=(2, 3, 4, 8)).astype("f4") if "memory" in what else ()
    trunk = rng.integers(0, 3, segments.shape).astype(np.int32)
    rows = (segments, Branches(trunk, np.arange(length, dtype=np.int32) - segments))
    with named.use_layout(layout):
        q, k, v, pull = (named.lay(x, "batch sequence heads head_dim") for x in (q, k, v, pull))
        segments, branches = jax.tree.map(lambda x: named.lay(x, "batch sequence"), rows)

    def total(q, k, v, learned, pull, key):
        how = {"causal": causal, "window": window}
        how["memory"] = learned or None
        how["dropout"] = named.Dropout(0.3, key) if "dropout" in what else None
        how["segments"] = segments if "segments" in what or "branches" in what else None
        how["branches"] = branches if "branches" in what else None
        with named.use_layout(layout):
            y = attention(q, k, v, **how)
        return jnp.sum(y * pull), y

    function = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))
    return function, (q, k, v, tuple(learned), pull, jax.random.key(5))


@pytest.mark.parametrize(
    "layout, what, more",
    [
        ("eight parts", ("memory", "dropout"), {}),
        ("three parts and rows", ("dropout", "segments"), {"causal": False}),
        ("two axes and heads", ("memory", "dropout", "segments"), {}),
        ("three parts and rows", ("branches",), {"window": 5}),
    ],
)
def test_dropout_learned_keys_and_branches_go_round_too(layout, what, more, monkeypatch):
    """The same weights are dropped as of the whole matrix on one device; gradients of learned keys are of all
    parts and rows."""
    monkeypatch.setattr(ring, "BLOCK", 2)
    found = []
    for own in (layout, "one"):
        function, arrays = asked(own, what, **more)
        (_, y), grads = function(*arrays)
        found.append([np.asarray(x) for x in jax.tree.leaves((y, grads))])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_bits_of_a_block_are_those_of_the_whole_array():
    """Also where the array has more elements than 32 bits count."""
    key = jax.random.key(7)
    whole = jax.random.bits(key, (3, 4, 5, 6), jnp.uint32)
    block = np.ix_([1, 2], [0, 3], [2, 3, 4], [1, 5])
    own = jax.jit(bits_at, static_argnums=2)(jax.random.key_data(key), block, (4, 5, 6))
    np.testing.assert_array_equal(own, np.asarray(whole)[block])
    place, sizes = (3, 200, 70_000, 90_000), (300, 131_101, 100_003)  # whose parts carry when added
    count = sum(x * int(np.prod(sizes[i:], dtype=np.int64)) for i, x in enumerate(place))
    expected = threefry2x32_p.bind(
        *jax.random.key_data(key), jnp.uint32(count >> 32), jnp.uint32(count % 2**32)
    )
    own = bits_at(jax.random.key_data(key), [jnp.asarray(x) for x in place], sizes)
    assert own == expected[0] ^ expected[1]


def test_pieces_of_odd_parts_stay_in_their_order():
    """Parts that are not of two equal pieces are not balanced, and give the same."""
    ours = measured(attention, layout_of("x:8", "sequence:x"), length=24)
    for x, y in zip(ours, measured(reference, layout_of("x:1"), length=24)):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("window", [None, 7, 200])
def test_rows_padded_at_the_left(window):
    q, k, v, *_ = operands(64)
    start = jnp.array([0, 13])
    real = (np.arange(64) >= np.asarray(start)[:, None])[..., None, None]
    found = []
    for layout, kernel in ((layout_of("x:4", "sequence:x"), attention), (layout_of("x:1"), reference)):
        with named.use_layout(layout):
            four = named.sharding("batch sequence heads head_dim")
            rows = [jax.device_put(x, four) for x in (q, k, v)]
            found.append(np.asarray(jax.jit(partial(kernel, window=window, start=start))(*rows)) * real)
    assert np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[0], found[1], atol=2e-6)


def collectives(window, length=512, parts=8):
    function, arrays = program(
        partial(attention, window=window), layout_of(f"x:{parts}", "sequence:x"), length
    )
    text = function.lower(*arrays).compile().as_text()
    kinds = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
    return text, {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


@pytest.mark.parametrize("window", [None, 16])
def test_only_neighbours_are_sent_to_and_no_row_or_score_is_whole(window):
    text, found = collectives(window)
    assert found.pop("collective-permute") and found.pop("all-reduce") <= 1  # that of the sum in this test
    assert not any(found.values())
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
    largest = max(int(np.prod(shape)) for shape in shapes)
    part = 2 * 64 * 4 * 8  # of queries
    scores = 2 * 4 * 64 * (32 if window is None else 2 * window)
    assert not any(512 in shape for shape in shapes) and largest <= max(part, scores)


@pytest.mark.parametrize("what", [("memory",), ("dropout",)])
def test_no_row_of_scores_is_whole_with_dropout_or_learned_keys(what):
    function, arrays = asked("eight parts", what, length=512)
    text = function.lower(*arrays).compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"(?:f32|u32|pred)\[([\d,]+)\]", text)}
    assert not any(512 in shape for shape in shapes)
    assert max(map(np.prod, shapes)) <= max(2 * 64 * 4 * 8, 2 * 4 * 64 * 32)  # a part's queries; its scores
    assert " all-gather(" not in text and " all-to-all(" not in text


def test_a_window_has_its_own_keys_sent_alone():
    """Of the neighbour's 64 keys the last 16, and values, there and back."""
    text, _ = collectives(16)
    sent = re.findall(r"= f32\[([\d,]+)\]\S* collective-permute", text)
    assert sent and set(sent) == {"2,16,2,8"}


def test_all_devices_do_the_same_work_and_half_of_all_pairs(monkeypatch):
    """Of 2 n pieces a device has 2, which look at 2 n + 1 pieces of keys where 4 n would be all."""
    counted = []
    pair = ring._pair

    def counting(own, queries, keys, source, a, b):
        counted.append((a, b))
        return pair(own, queries, keys, source, a, b)

    monkeypatch.setattr(ring, "_pair", counting)
    collectives(None)
    first = [pair for pair in counted if all(isinstance(x, int) for x in pair)][:3]
    assert first == [(0, 0), (1, 0), (1, 1)]
    assert len(counted) == 2 * (3 + 2)  # the own part, and one turn of the loop of all others; there and back


def test_tokens_beside_come_from_as_many_parts_as_they_lie_in():
    x = jax.device_put(
        np.arange(1, 25).reshape(1, 24), layout_of("x:8", "sequence:x").sharding(["", "sequence"])
    )
    mesh = x.sharding.mesh
    for count in (1, 3, 5, 24):
        earlier, later = (
            jax.shard_map(
                lambda x, count=count, side=side: side(x, count, ("x",)),
                mesh=mesh,
                in_specs=jax.P(None, "x"),
                out_specs=jax.P(None, "x"),
            )(x)
            for side in (blocks.before, blocks.after)
        )
        padded = np.concatenate([np.zeros(count, int), np.arange(1, 25), np.zeros(count, int)])
        for found, first in ((earlier, 0), (later, count + 3)):
            expected = [padded[3 * i + first : 3 * i + first + count] for i in range(8)]
            np.testing.assert_array_equal(np.asarray(found).reshape(8, count), expected)
