"""Mixture of experts on one device's tokens: which experts each goes to, and the ways there and back.

`reference` moves tokens by products with one-hot matrices, as Mesh-TensorFlow and GShard do. `exchanged`
sorts them into the places of their experts and sends these to the devices that hold the experts, by
all-to-all; `gathered` sorts them by expert and multiplies each run by its expert's matrix, for experts that
take all that come. The three compute the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Activation = Callable[[jax.Array], jax.Array]


class Choice(NamedTuple):
    """The experts of each token, the likeliest first, all [groups, tokens, choices].

    `expert`: int32. `gate`: float32, what the expert's output is times. `taken`: whether the token goes
    there. `place`: int32, how many of its group go to that expert before it; 0 where it does not matter.
    """

    expert: jax.Array
    gate: jax.Array
    taken: jax.Array
    place: jax.Array | int = 0

    def within(self, number: int, capacity: int) -> "Choice":
        """The choice as far as each of `number` experts has a place.

        A group has `capacity` places in every expert. First come the tokens whose first choice it is, in
        their order, then those whose second it is, and so on; those that find no place are not taken, and
        what they would have got is 0.
        """
        groups, tokens, choices = self.expert.shape
        expert, taken = (x.swapaxes(1, 2).reshape(groups, -1) for x in (self.expert, self.taken))
        sent = jax.nn.one_hot(expert, number, dtype=jnp.int32) * taken[..., None]
        before = jnp.sum((jnp.cumsum(sent, axis=1) - sent) * sent, axis=-1)
        place = before.reshape(groups, choices, tokens).swapaxes(1, 2)
        return self._replace(taken=self.taken & (place < capacity), place=place)

    def first_within(self, number: int, capacity: int) -> "Choice":
        """One expert of each token's choices: the first that has a place, as `within` has them. A token asks
        for its next choice once all others have asked for theirs of that rank, and takes no place in those
        that were full. One that finds no place at all has its first choice, and is not taken."""
        used, left = jnp.zeros((), jnp.int32), self.taken[..., 0]
        found, places = [], []
        for rank in range(self.expert.shape[-1]):
            left = left & self.taken[..., rank]
            asks = jax.nn.one_hot(self.expert[..., rank], number, dtype=jnp.int32) * left[..., None]
            place = jnp.sum((used + jnp.cumsum(asks, axis=1) - asks) * asks, axis=-1)
            found.append(left & (place < capacity))
            places.append(place)
            used = used + jnp.sum(asks * found[-1][..., None], axis=1, keepdims=True)
            left = left & ~found[-1]
        has = jnp.stack(found, axis=-1)
        taken = jnp.any(has, axis=-1, keepdims=True)
        at = has.at[..., 0].set(has[..., 0] | ~taken[..., 0])

        def one(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(at, x, 0), axis=-1, keepdims=True)

        return Choice(one(self.expert), one(self.gate), taken, one(jnp.stack(places, axis=-1)))


class Held(NamedTuple):
    """How the experts' products are laid out: the mesh axes, each with whether it splits tokens too, that
    split experts, those that split embd, and those that split an expert's width."""

    experts: Sequence[tuple[str, bool]] = ()
    embd: tuple[str, ...] = ()
    width: tuple[str, ...] = ()


def reference(
    x: jax.Array, choice: Choice, capacity: int, up: jax.Array, down: jax.Array, activation: Activation
) -> jax.Array:
    """x [groups, tokens, embd], up [experts, embd, width], down [experts, width, embd] -> as x, on one
    device, of a choice that is `within` the capacity. What the other forms are compared with."""
    expert, place = jax.nn.one_hot(choice.expert, len(up)), jax.nn.one_hot(choice.place, capacity)
    at = expert[..., None] * place[..., None, :] * choice.taken[..., None, None]
    sent = jnp.einsum("gtd,gtkec->egcd", x, at.astype(x.dtype))
    made = jnp.einsum("egcw,ewd->egcd", activation(jnp.einsum("egcd,edw->egcw", sent, up)), down)
    return jnp.einsum("egcd,gtkec->gtd", made, (at * choice.gate[..., None, None]).astype(x.dtype))


def exchanged(
    x: jax.Array,
    choice: Choice,
    capacity: int,
    up: jax.Array,
    down: jax.Array,
    activation: Activation,
    held: Held = Held(),  # noqa: B008 - a tuple
) -> jax.Array:
    """As `reference`, of a device's own tokens and its part of the experts."""
    groups, tokens, _ = x.shape
    parts = 1
    for axis, _ in held.experts:
        parts *= jax.lax.axis_size(axis)
    number = len(up) * parts
    slots = number * groups * capacity
    group = jnp.arange(groups)[:, None, None]
    slot = jnp.where(choice.taken, (choice.expert * groups + group) * capacity + choice.place, slots)
    slot = slot.reshape(groups * tokens, -1)
    filler = inverse(slot, slots)
    sent = gather_rows(x.reshape(groups * tokens, -1), filler // slot.shape[1], slot)
    sent = _there(sent.reshape(number, groups * capacity, -1), held)
    hidden = _summed(jnp.einsum("ecd,edw->ecw", sent, up), held.embd)
    hidden = activation(checkpoint_name(hidden, "mlp_up"))
    made = _back(jnp.einsum("ecw,ewd->ecd", hidden, down), held)
    found = gather_rows(made.reshape(slots, -1), slot, filler[:, None])
    spread = tuple(axis for axis, splits in held.experts if not splits)
    return _combined(found, choice, x, (*spread, *held.width))


def gathered(
    x: jax.Array,
    choice: Choice,
    up: jax.Array,
    down: jax.Array,
    activation: Activation,
    held: Held = Held(),  # noqa: B008 - a tuple
) -> jax.Array:
    """As `reference` where no token lacks a place, of a device's own tokens and all experts."""
    rows = x.reshape(-1, x.shape[-1])
    choices = choice.expert.shape[-1]
    expert = jnp.where(choice.taken, choice.expert, len(up)).reshape(-1)
    order = jnp.argsort(expert)
    place = inverse(order[:, None], len(order)).reshape(len(rows), choices)
    counts = jnp.sum(jax.nn.one_hot(expert, len(up), dtype=jnp.int32), axis=0)
    hidden = _by_expert(gather_rows(rows, order // choices, place), up, counts)
    hidden = activation(checkpoint_name(_summed(hidden, held.embd), "mlp_up"))
    made = _by_expert(hidden, down, counts)
    return _combined(gather_rows(made, place, order[:, None]), choice, x, held.width)


def _by_expert(rows: jax.Array, matrices: jax.Array, counts: jax.Array) -> jax.Array:
    """Each run of rows, `counts` long, times the matrix of its expert. It says how the product lies, on one
    device, which JAX 0.10 does not find out where stages of a pipeline are a dimension beside it."""
    whole = None if jax.sharding.get_abstract_mesh().empty else jax.P(None, None)
    return jax.lax.ragged_dot(rows, matrices, counts, out_sharding=whole)


def inverse(index: jax.Array, size: int) -> jax.Array:
    """Of index int32 [rows, times], whose entries below `size` are each there once: for each of `size`, which
    entry of the flattened index it is, or one beyond them."""
    flat = index.reshape(-1)
    empty = jnp.full((size,), flat.size, jnp.int32) + 0 * flat[:1]  # lies on the devices as `index` does
    return empty.at[flat].set(jnp.arange(flat.size, dtype=jnp.int32), mode="drop")


@jax.custom_vjp
def gather_rows(x: jax.Array, index: jax.Array, back: jax.Array) -> jax.Array:
    """Rows of x [rows, embd] at index [...], zeros beyond them: [..., embd]. `back` int32 [rows, times] says
    where in the flattened index each row stands, so that the gradient is a gather too."""
    return x.at[index].get(mode="fill", fill_value=0)


def _gather_forward(x: jax.Array, index: jax.Array, back: jax.Array):
    return gather_rows(x, index, back), back


def _gather_backward(back: jax.Array, slope: jax.Array):
    slope = slope.reshape(-1, slope.shape[-1]).at[back].get(mode="fill", fill_value=0)
    return jnp.sum(slope, axis=1, dtype=jnp.float32).astype(slope.dtype), None, None


gather_rows.defvjp(_gather_forward, _gather_backward)


def _combined(found: jax.Array, choice: Choice, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """What the experts made of each token's choices, found [tokens, choices, embd], added up, as x."""
    gate = jnp.where(choice.taken, choice.gate, 0.0).reshape(found.shape[:2])
    y = jnp.einsum("tkd,tk->td", found, gate, preferred_element_type=jnp.float32)
    return _summed(y.astype(x.dtype), axes).reshape(x.shape)


def _summed(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _there(sent: jax.Array, held: Held) -> jax.Array:
    """[experts, places, embd] of a device's tokens -> [its experts, places of all devices' tokens, embd]."""
    for axis, splits_tokens in held.experts:
        if splits_tokens:
            sent = jax.lax.all_to_all(sent, axis, 0, 1, tiled=True)
        else:  # each device has these tokens, and takes its experts' part
            own = len(sent) // jax.lax.axis_size(axis)
            sent = jax.lax.dynamic_slice_in_dim(sent, jax.lax.axis_index(axis) * own, own)
    return sent


def _back(made: jax.Array, held: Held) -> jax.Array:
    """The other way round; zeros for experts whose part is on other devices."""
    for axis, splits_tokens in reversed(held.experts):
        if splits_tokens:
            made = jax.lax.all_to_all(made, axis, 1, 0, tiled=True)
        else:
            own = len(made)
            whole = jnp.tile(jnp.zeros_like(made), (jax.lax.axis_size(axis), 1, 1))
            made = jax.lax.dynamic_update_slice_in_dim(whole, made, jax.lax.axis_index(axis) * own, 0)
    return made
