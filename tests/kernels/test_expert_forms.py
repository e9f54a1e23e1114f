"""Experts against one token at a time: every form gives the same outputs and gradients, and where room lacks,
those that come last are passed by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neojax.kernels.experts import Choice, exchanged, gathered, reference

GROUPS, TOKENS, WIDTH, EXPERTS, TOP = 3, 10, 8, 4, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(GROUPS, TOKENS, WIDTH)).astype("f4")
UP = RNG.normal(size=(EXPERTS, WIDTH, 12)).astype("f4")
DOWN = RNG.normal(size=(EXPERTS, 12, WIDTH)).astype("f4")
EXPERT = np.argsort(RNG.normal(size=(GROUPS, TOKENS, EXPERTS)))[..., :TOP].astype(np.int32)
GATE = RNG.uniform(size=EXPERT.shape).astype("f4")
TAKEN = RNG.uniform(size=EXPERT.shape) < 0.8


def served(capacity):
    """[group, token, choice]: whether it finds room, when all first choices come before all second ones."""
    found = np.zeros(EXPERT.shape, bool)
    for group in range(GROUPS):
        room = [capacity] * EXPERTS
        for choice in range(TOP):
            for token in range(TOKENS):
                expert = EXPERT[group, token, choice]
                if TAKEN[group, token, choice] and room[expert]:
                    room[expert] -= 1
                    found[group, token, choice] = True
    return found


def by_token(x, gate, up, down, found):
    rows = [
        sum(
            (
                gate[g, t, k] * (jnp.tanh(x[g, t] @ up[EXPERT[g, t, k]]) @ down[EXPERT[g, t, k]])
                for k in range(TOP)
                if found[g, t, k]
            ),
            jnp.zeros(WIDTH),
        )
        for g in range(GROUPS)
        for t in range(TOKENS)
    ]
    return jnp.stack(rows).reshape(x.shape)


def graded(f):
    """Outputs, and gradients of a sum that weighs each of them otherwise."""
    weigh = np.cos(np.arange(X.size)).reshape(X.shape).astype("f4")

    def loss(*inputs):
        y = f(*inputs)
        return jnp.sum(y * weigh), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, range(4), has_aux=True))(X, GATE, UP, DOWN)
    return [np.asarray(a) for a in (y, *grads)]


@pytest.mark.parametrize("capacity", [TOKENS, 3, 1])
def test_every_form_against_one_token_at_a_time(capacity):
    found = served(capacity)
    assert (found.sum() == TAKEN.sum()) == (capacity == TOKENS)
    choice = Choice(EXPERT, GATE, TAKEN)
    within = choice.within(EXPERTS, capacity)
    np.testing.assert_array_equal(within.taken, found)
    expected = graded(lambda x, gate, up, down: by_token(x, gate, up, down, found))

    def of(form, *room, choice=within):
        return graded(lambda x, gate, u, d: form(x, choice._replace(gate=gate), *room, u, d, jnp.tanh))

    forms = [of(reference, capacity), of(exchanged, capacity)]
    forms += [of(gathered, choice=choice)] if capacity == TOKENS else []
    for form in forms:
        for mine, theirs in zip(form, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


def served_once(capacity):
    """The choice of each token that finds room, when it asks for the next once all others have asked for
    theirs of that rank; -1: none does."""
    found = np.full((GROUPS, TOKENS), -1)
    for group in range(GROUPS):
        room = [capacity] * EXPERTS
        for choice in range(TOP):
            for token in range(TOKENS):
                expert = EXPERT[group, token, choice]
                if found[group, token] < 0 and ALL[group, token] and room[expert]:
                    room[expert] -= 1
                    found[group, token] = choice
    return found


ALL = np.arange(TOKENS) < np.array([TOKENS, TOKENS - 2, TOKENS])[:, None]  # the others are padding


@pytest.mark.parametrize("capacity", [TOKENS, 2, 1])
def test_no_token_is_left_behind_while_one_of_its_experts_has_room(capacity):
    found = served_once(capacity)
    one = Choice(EXPERT, GATE, np.repeat(ALL[..., None], TOP, axis=2)).first_within(EXPERTS, capacity)
    np.testing.assert_array_equal(one.taken[..., 0], found >= 0)
    assert (found == 1).any() == (capacity < TOKENS) and ((found < 0) & ALL).any() == (capacity < TOKENS)
    at = found.clip(0)[..., None]
    for mine, theirs in ((one.expert, EXPERT), (one.gate, GATE)):
        np.testing.assert_array_equal(mine, np.take_along_axis(theirs, at, axis=2))
    slots = {(g, int(one.expert[g, t, 0]), int(one.place[g, t, 0])) for g, t in np.argwhere(found >= 0)}
    assert len(slots) == (found >= 0).sum() and all(place < capacity for *_, place in slots)
    expected = graded(
        lambda x, gate, up, down: by_token(x, gate, up, down, np.arange(TOP) == found[..., None])
    )

    def settled(gate):
        return Choice(EXPERT, gate, np.repeat(ALL[..., None], TOP, axis=2)).first_within(EXPERTS, capacity)

    for form in (reference, exchanged):
        mine = graded(lambda x, gate, up, down, f=form: f(x, settled(gate), capacity, up, down, jnp.tanh))
        for ours, theirs in zip(mine, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
