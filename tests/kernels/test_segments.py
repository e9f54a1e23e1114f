"""Documents that share a row do not see each other: every kernel gives each what it gives it alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layout_of

from neojax.errors import NeojaxError
from neojax.kernels import blocks as kernels
from neojax.kernels import cudnn, splash
from neojax.kernels import linear_attention as linear
from neojax.kernels.attention import attention, fused, reference
from neojax.kernels.blocks import blocked, local
from neojax.kernels.masks import Branches
from neojax.layout import named
from neojax.layout.named import Constant, Param

ONE = layout_of("data:1")
SIZES = [[5, 1, 8, 6], [3, 17]]  # of the documents of each row; the last of the first row is padding
LENGTH = sum(SIZES[0])


def segments_of(sizes=SIZES):
    """int32 [batch, sequence], the last document of the first row being padding."""
    rows = [np.repeat(np.arange(1, len(row) + 1), row) for row in sizes]
    rows[0][rows[0] == len(sizes[0])] = 0
    return np.array(rows, np.int32)


def documents(sizes=SIZES):
    """(row, its tokens) of every document."""
    for row, own in enumerate(sizes):
        ends = np.cumsum(own)
        for end, size in zip(ends, own):
            yield row, slice(end - size, end)


def operands(length=LENGTH, heads=4, head_dim=4):
    """q, k, v, and what pulls at the result, [batch, sequence, heads, head_dim]."""
    shape = 2, length, heads, head_dim
    return tuple(
        np.array(jax.random.normal(key, shape)) * 2 for key in jax.random.split(jax.random.key(0), 4)
    )


def program(kernel, layout=ONE):
    """(q, k, v, pull, segments) -> what `kernel` gives on `layout`, and the gradients of its product with
    `pull`."""

    def total(q, k, v, pull, segments):
        out = kernel(q, k, v, segments=segments)
        return jnp.sum(out * pull), out

    compiled = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))

    def run(*arrays):
        with named.use_layout(layout):
            four, two = named.sharding("batch sequence heads head_dim"), named.sharding("batch sequence")
            laid = [jax.device_put(x, four if x.ndim == 4 else two) for x in arrays if x is not None]
            (_, out), grads = compiled(*laid, *(None for x in arrays if x is None))
        return [np.array(x) for x in (out, *grads)]

    return run


def gives_each_what_it_gives_alone(kernel, alone=None, layout=ONE, sizes=SIZES, tolerance=1e-5):
    """In values and gradients; `alone` (default: `kernel`) works on rows of one document each, which begins
    them."""
    arrays, places = operands(sum(sizes[0])), list(documents(sizes))
    together = program(kernel, layout)(*arrays, segments_of(sizes))
    rows = [np.zeros((len(places), *x.shape[1:]), x.dtype) for x in arrays]
    for i, (row, own) in enumerate(places):
        for x, separate in zip(arrays, rows):
            separate[i, : own.stop - own.start] = x[row, own]
    expected = program(alone or kernel)(*rows, None)
    for ours, theirs in zip(together, expected, strict=True):
        size = np.abs(theirs).max()
        for i, (row, own) in enumerate(places):
            separate = theirs[i, : own.stop - own.start]
            np.testing.assert_allclose(ours[row, own], separate, atol=tolerance * size)


def causal_linear(q, k, v, segments, **options):
    return linear.attention(q, k, v, segments=segments, **options)[0]


KERNELS = {
    "reference": reference,
    "reference, window": partial(reference, window=3),
    "blocked": blocked,
    "blocked, window": partial(blocked, window=9),
    "local": partial(local, window=3),
    "local, one key": partial(local, window=1),
    "linear": causal_linear,
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and chunks that begin within documents and at their borders."""
    monkeypatch.setattr(kernels, "BLOCK", 5)
    monkeypatch.setattr(linear, "CHUNK", 4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_gives_a_document_what_it_gives_it_alone(kernel, small_blocks):
    gives_each_what_it_gives_alone(KERNELS[kernel])


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
@pytest.mark.parametrize("window", [None, 4])
def test_a_branch_sees_the_trunk_and_itself_as_if_it_followed_the_trunk(kernel, window, small_blocks):
    """Two trees in a row; a branch may be empty, and a window reaches back from a branch into the trunk."""
    trees = [(6, (3, 0, 2)), (2, (4, 1))]
    rows = np.zeros((3, 2, LENGTH), np.int32)  # segments, branches, positions
    alone, end = [], 0
    for segment, (trunk, sizes) in enumerate(trees, 1):
        first, end = end, end + trunk
        rows[:, :, first:end] = np.array([np.full(trunk, segment), np.zeros(trunk), np.arange(trunk)])[
            :, None
        ]
        for branch, size in enumerate(sizes, 1):
            own = np.array([np.full(size, segment), np.full(size, branch), trunk + np.arange(size)])
            rows[:, :, end : end + size] = own[:, None]
            alone.append([*range(first, first + trunk), *range(end, end + size)])
            end += size
    q, k, v, _ = operands()
    work = partial(KERNELS[kernel], window=window)
    with named.use_layout(ONE):
        of_rows = {"segments": rows[0], "branches": Branches(*rows[1:])}
        found = jax.jit(lambda q, k, v, rows: work(q, k, v, **rows))(q, k, v, of_rows)
    for own in alone:
        time = np.arange(len(own))
        seen = (time <= time[:, None]) & (time > time[:, None] - (window or LENGTH))
        scores = np.where(seen, np.einsum("bqhd,bkhd->bhqk", q[:, own], k[:, own]), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wanted = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v[:, own])
        np.testing.assert_allclose(found[:, own], wanted, atol=1e-5)


@pytest.mark.parametrize("window", [None, 2])
def test_without_a_causal_mask_a_document_sees_all_of_itself(window):
    """Alone it is as long as it is: what comes after it would be seen. Padding, of which nothing is pulled,
    is seen by none."""
    kernel, arrays = partial(reference, causal=False, window=window), operands()
    run, segments = program(kernel), segments_of()
    arrays[3][segments == 0] = 0
    together = run(*arrays, segments)
    for row, own in documents():
        if segments[row, own][0] == 0:
            continue
        alone = run(*(x[row : row + 1, own] for x in arrays), None)
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[row : row + 1, own], theirs, atol=5e-5)


@pytest.mark.parametrize("window", [None, 50])
def test_splash_gives_a_document_what_the_reference_gives_it_alone(window):
    """Of two blocks of 128; a document begins at the border, others within."""
    own = partial(fused, partial(splash.attention, interpret=True, window=window))
    sizes = [[100, 28, 60, 12], [1, 199]]
    gives_each_what_it_gives_alone(own, partial(reference, window=window), sizes=sizes)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_document_gives_has_no_slope_in_another(kernel, small_blocks):
    """Not even rounding."""
    *arrays, pull = operands()
    run = program(KERNELS[kernel])
    for row, own in documents():
        only = np.zeros_like(pull)
        only[row, own] = pull[row, own]
        _, *slopes = run(*arrays, only, segments_of())
        assert slopes[2][row, own].any()
        for slope in slopes:
            slope[row, own] = 0
            assert not slope.any()


@pytest.mark.parametrize(
    "layout", ["batch:x, heads:y", "batch:x, sequence:y", "batch:x, memory_length:y", "batch:x, head_dim:y"]
)
@pytest.mark.parametrize(
    "kernel", [attention, partial(attention, window=3), causal_linear], ids=["global", "local", "linear"]
)
def test_documents_stand_apart_under_every_layout(kernel, layout, small_blocks):
    gives_each_what_it_gives_alone(kernel, layout=layout_of("x:2, y:4", layout))


def test_learned_keys_are_seen_by_every_document():
    sizes = {"memory_slots": 3, "heads": 4, "head_dim": 4}
    memory = []
    for key in jax.random.split(jax.random.key(5)):
        param = Param("memory_slots heads head_dim", Constant(0.0), sizes)
        memory.append(param.replace(jax.random.normal(key, (3, 4, 4))))
    gives_each_what_it_gives_alone(partial(attention, memory=tuple(memory)))


@pytest.mark.parametrize(
    "kernel", [reference, blocked, partial(local, window=3)], ids=["reference", "blocked", "local"]
)
def test_padding_at_the_left_goes_with_documents(kernel, small_blocks):
    """What sampling pads, and what packs documents, are two rules that both hold."""
    arrays, start = operands(), np.array([2, 0], np.int32)
    ours = program(partial(kernel, start=jnp.array(start)))(*arrays, segments_of())[0]
    part = [x[:1, 2:5] for x in arrays]
    np.testing.assert_allclose(ours[:1, 2:5], program(kernel)(*part, None)[0], atol=2e-6)


def test_rows_turned_for_a_fused_kernel_keep_their_documents():
    kernel = partial(
        fused, lambda q, k, v, own: kernels._plain(q, k, v, jnp.zeros(2, jnp.int32), (own, None), 0, None)
    )
    arrays, start = operands(), jnp.array([2, 7])
    ours, theirs = (program(partial(k, start=start))(*arrays, segments_of())[0] for k in (kernel, reference))
    real = np.arange(LENGTH) >= start[:, None]
    np.testing.assert_allclose(ours[real], theirs[real], atol=2e-6)


@pytest.mark.parametrize("layout", ["batch:x, heads:y", "batch:x, sequence:y"])
def test_the_state_of_linear_attention_is_of_the_last_document(layout, small_blocks):
    q, k, v, _ = operands()
    split = layout_of("x:2, y:4", layout)
    with named.use_layout(split):
        four = named.sharding("batch sequence heads head_dim")
        laid = [jax.device_put(x, four) for x in (q, k, v)]
        own = jax.device_put(segments_of(), named.sharding("batch sequence"))
        _, state = jax.jit(lambda *a: linear.attention(*a[:3], segments=a[3]))(*laid, own)
    state = [np.asarray(x) for x in state]
    for row, size in ((0, 6), (1, 17)):
        with named.use_layout(ONE):
            _, alone = linear.attention(*(x[row : row + 1, -size:] for x in (q, k, v)))
        for ours, theirs in zip(state, alone, strict=True):
            np.testing.assert_allclose(ours[row], theirs[0], rtol=1e-5)


def test_linear_attention_to_all_tokens_refuses_documents():
    q, k, v, _ = operands()
    with (
        named.use_layout(ONE),
        pytest.raises(NeojaxError, match=r"linear attention without a causal mask.*isolate_documents=false"),
    ):
        linear.attention(q, k, v, segments=segments_of(), causal=False)


@pytest.mark.parametrize("name", ["reference", "cudnn"])
def test_padding_is_seen_by_no_query_of_what_is_not_causal(name):
    """Not even by padding's own, whose results are part of what a softmax over all positions sees."""
    kernel = partial(reference, causal=False)
    if name == "cudnn":
        kernel = partial(fused, partial(cudnn.attention, causal=False, implementation="xla"))
    segments, (q, k, v, _) = segments_of(), operands()
    padding = (segments == 0)[..., None, None]
    assert padding.any()
    with named.use_layout(ONE):
        found, other = (
            np.asarray(kernel(q, np.where(padding, x, k), np.where(padding, x, v), segments=segments))
            for x in (0, 9)
        )
    np.testing.assert_array_equal(found, other)
