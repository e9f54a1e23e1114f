"""A mixture of experts in place of a block's MLP: the router, its losses, and how experts lie on the mesh.

Facts: `moe.py` of Mesh-TensorFlow (top_2, switch and rand_1 gating), which gpt-neo calls; GShard,
https://arxiv.org/abs/2006.16668; Switch Transformer, https://arxiv.org/abs/2101.03961; the router's z-loss,
https://arxiv.org/abs/2202.08906.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from neojax.config import ExpertsConfig, ModelConfig
from neojax.errors import NeojaxError
from neojax.kernels import experts as kernel
from neojax.kernels.experts import Choice, Held
from neojax.layout import each_device, named
from neojax.layout.mesh import Layout
from neojax.layout.named import Dropout, Normal, Param, einsum
from neojax.layout.product import standing_for
from neojax.layout.row_lookup import vary
from neojax.models.activations import ACTIVATIONS
from neojax.models.context import Context
from neojax.models.losses import Sums, at_least_some

UP, DOWN = "experts embd expert_mlp", "experts expert_mlp embd"
LOSSES = "balance_loss", "router_z_loss"


def groups_of(experts: ExpertsConfig, length: int, parts: int) -> int:
    """The groups that a row of `length` tokens is cut into where room is bounded. Raises `NeojaxError` where
    they are not whole in each of `parts` of it."""
    count = -(-length // (experts.group_size or length))
    while length % count:
        count += 1
    if count % parts:
        raise NeojaxError(
            f"mesh.layout splits sequence into {parts} parts, but experts have room for groups of "
            f"{length // count} tokens, {count} in a row of {length}; give "
            f"model.experts.group_size={length // parts}"
        )
    return count


def check_groups(config: ModelConfig, layout: Layout, lengths: Iterable[int]) -> None:
    """Raises `NeojaxError` where rows of one of `lengths` cannot be trained on, since a group of tokens that
    share the room of experts would lie on several devices."""
    if not config.experts.number or config.experts.dropless:
        return
    parts = layout.split_over(layout.axes("sequence", beside=["expert_mlp"]))
    for length in sorted(lengths):
        groups_of(config.experts, length, parts)


class Experts(nnx.Module):
    """`model.experts.number` MLPs without bias and gate, and the router that picks `top_k` for each token.

    In training, where there is a random key, experts have room for so many tokens of a group; a token that
    finds none in any of its experts gets 0, so that the residual stream passes it on. Otherwise they take all
    that come: what is said of a text does not depend on its neighbours. Groups are those of the losses too;
    where there is room for all, these are of rows.

    Tokens go to the devices that hold their experts by all-to-all, where the layout splits `experts`. Where
    all are taken, and a device has more tokens than an expert is wide, so that its tokens' room would be the
    larger, the experts come to the tokens instead.
    """

    def __init__(self, config: ModelConfig, sizes: Mapping[str, int]):
        self.config = config.experts
        self.width = config.expert_dim
        self.router = Param("embd routes", Normal(config.n_embd**-0.5), sizes)
        self.up = Param(UP, Normal(config.n_embd**-0.5), sizes)
        self.down = Param(DOWN, Normal(config.expert_dim**-0.5), sizes)

    def __call__(self, x: jax.Array, context: Context, key: jax.Array | None) -> tuple[jax.Array, Sums]:
        """x [batch, sequence, embd] -> the same shape, and what is reported: `expert_load`, the share of
        tokens that choose each expert [experts]; `expert_dropped`, the share of choices for which there was
        no room; `router_entropy`, in nats; `balance_loss`, `router_z_loss`. Padding goes to no expert."""
        layout, e = named.current_layout(), self.config
        of_rows = layout.axes("sequence", beside=["expert_mlp"])
        split, parts = layout.axes("batch") + of_rows, layout.split_over(of_rows)
        bounded = key is not None and not e.dropless
        groups, across = (groups_of(e, x.shape[1], parts), ()) if bounded else (parts, of_rows)
        tokens = x.shape[1] // groups
        room = self.capacity(tokens) if bounded else tokens
        on_device = x.shape[0] * x.shape[1] // (layout.split("batch") * parts)
        comes = room == tokens and on_device > self.width
        tries = 1 if key is None else e.tries
        layout.spec(("batch", "sequence", "expert_mlp"), what="the hidden layer of experts")
        spread = [(axis, axis in split) for axis in layout.axes("experts") if not comes]
        held = Held(spread, layout.axes("embd"), layout.axes("expert_mlp"))
        shared = tuple(axis for axis in split if (axis, True) not in spread)
        rows = {"x": x, "logits": self._logits(x, key)}
        dims = {"x": "batch sequence embd", "logits": "batch sequence routes"}
        if (noise := self._noise(x, key)) is not None:
            rows["noise"], dims["noise"] = noise, "batch sequence one"
        if context.segments is not None:
            rows["real"], dims["real"] = context.segments > 0, "batch sequence"
        rows = {name: named.lay(a, dims[name], "expert_mlp") for name, a in rows.items()}
        up_dims, down_dims = (own.replace("experts", "routes") if comes else own for own in (UP, DOWN))
        weights = (
            named.trained(self.up, up_dims, x.dtype),
            named.trained(self.down, down_dims, x.dtype),
        )

        def own_tokens(
            rows: dict[str, jax.Array], weights: tuple[tuple[jax.Array, jax.Array], ...]
        ) -> tuple[jax.Array, Sums]:
            up, down = (standing_for(*(vary(w, shared) for w in pair)) for pair in weights)
            parts = {name: a.reshape(-1, tokens, *a.shape[2:]) for name, a in rows.items()}
            choice, sums = self.choose(parts["logits"], parts.get("noise"), parts.get("real"), tries, across)
            wanted = jnp.sum(choice.taken[..., : e.top_k], dtype=jnp.float32)
            if tries > 1:
                choice = choice.first_within(e.number, room)
            elif not comes:
                choice = choice.within(e.number, room)
            if comes:
                y = kernel.gathered(parts["x"], choice, up, down, self.activate, held)
            else:
                y = kernel.exchanged(parts["x"], choice, room, up, down, self.activate, held)
            sums["expert_dropped"] = wanted - jnp.sum(choice.taken, dtype=jnp.float32), wanted
            return y.reshape(rows["x"].shape), jax.lax.psum(sums, split) if split else sums

        specs = {name: named.sharding(dims[name], "expert_mlp").spec for name in rows}
        y, sums = each_device.shard_map(
            own_tokens,
            mesh=layout.mesh,
            in_specs=(specs, tuple(named.sharding(own).spec for own in (up_dims, down_dims))),
            out_specs=(specs["x"], jax.P()),
        )(rows, weights)
        balance, z = (total / at_least_some(count) for total, count in (sums[n] for n in LOSSES))
        trains = e.balance_loss * balance + e.z_loss * z
        y = named.lay(y, "batch sequence embd")
        return y, {**sums, "mean_objective": (trains, jnp.ones_like(trains))}

    def capacity(self, tokens: int) -> int:
        """The places that a group of so many tokens has in each expert."""
        e = self.config
        return min(tokens, max(e.min_capacity, int(tokens * e.capacity_factor * e.top_k / e.number)))

    def choose(
        self,
        logits: jax.Array,
        noise: jax.Array | None,
        real: jax.Array | None,
        tries: int = 1,
        across: tuple[str, ...] = (),
    ) -> tuple[Choice, Sums]:
        """The experts of each token, by float32 logits [groups, tokens, experts], and what is reported of
        them. `noise` float32 [groups, tokens, 1 or experts] as `_noise` gives it, `real` bool [groups,
        tokens], False for padding. `tries`: so many experts, of which it goes to one; the loss that spreads
        tokens is then, as Mesh-TensorFlow's, the mean of those of the first, the second, and so on.
        `across`: the mesh axes over which a group is spread."""
        e = self.config
        chances = jax.nn.softmax(logits)
        liked = logits + noise if e.sampled and noise is not None else logits
        choices = max(e.top_k, tries)
        expert = jax.lax.top_k(jax.lax.stop_gradient(liked), choices)[1].astype(jnp.int32)
        picked = jax.nn.one_hot(expert, e.number)
        gate = jnp.einsum("gtke,gte->gtk", picked, chances)
        if e.top_k > 1:
            gate = gate / (jnp.sum(gate, axis=-1, keepdims=True) + 1e-9)
        taken = jnp.ones_like(gate, bool)
        if e.second == "threshold":
            taken = taken.at[..., 1].set(gate[..., 1] > e.second_threshold)
        elif e.second == "none":
            taken = taken.at[..., 1].set(False)
        elif e.second == "random" and noise is not None:
            taken = taken.at[..., 1].set(noise[..., 0] < gate[..., 1] / e.second_threshold)
        mask = jnp.ones_like(logits[..., 0]) if real is None else real.astype(jnp.float32)
        taken = taken & (mask > 0)[..., None]
        counts = jnp.sum(mask, axis=1)

        def of_group(x: jax.Array) -> jax.Array:
            return jax.lax.psum(x, across) if across else x

        def mean(x: jax.Array) -> jax.Array:
            return of_group(jnp.einsum("gte,gt->ge", x, mask)) / jnp.maximum(of_group(counts), 1)[:, None]

        ranked = jnp.mean(picked[:, :, :tries], axis=2)
        balance = e.number * jnp.sum(mean(ranked) * mean(chances), axis=-1)
        log_sum = jax.nn.logsumexp(logits, axis=-1)
        entropy = log_sum - jnp.sum(chances * logits, axis=-1)
        load = jnp.einsum("gtke,gtk->e", picked[:, :, : e.top_k], taken[..., : e.top_k].astype(jnp.float32))
        tokens = jnp.sum(counts)
        return Choice(expert, gate, taken), {
            "expert_load": (load, jnp.full_like(load, 1.0) * tokens),
            "router_entropy": (jnp.sum(entropy * mask), tokens),
            "balance_loss": (jnp.sum(balance * counts), tokens),
            "router_z_loss": (jnp.sum(log_sum**2 * mask), tokens),
        }

    def activate(self, x: jax.Array) -> jax.Array:
        """The activation, computed again in the backward pass."""
        return jax.checkpoint(lambda x: ACTIVATIONS[self.config.activation](x).astype(x.dtype))(x)

    def _logits(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """What the router makes of x, float32 [batch, sequence, routes]."""
        x = x.astype(jnp.float32)
        if key is not None and self.config.jitter:
            key, sharding = jax.random.fold_in(key, 0), named.sharding("batch sequence embd")
            spread = jax.random.uniform(key, x.shape, out_sharding=sharding)
            x = x * (1 + self.config.jitter * (2 * spread - 1))
        if key is not None and self.config.input_dropout:
            x = Dropout(self.config.input_dropout, jax.random.fold_in(key, 2))(x, "batch sequence embd")
        with jax.default_matmul_precision("float32"):
            return einsum("batch sequence embd, embd routes -> batch sequence routes", x, self.router)

    def _noise(self, x: jax.Array, key: jax.Array | None) -> jax.Array | None:
        """In training, random numbers for the choice, float32: of a Gumbel distribution for each expert where
        it is drawn, else uniform ones where the second expert is."""
        if key is None or not (self.config.sampled or self.config.second == "random"):
            return None
        key, sharding = jax.random.fold_in(key, 1), named.sharding("batch sequence one")
        if self.config.sampled:
            return jax.random.gumbel(key, (*x.shape[:2], self.config.number), out_sharding=sharding)
        return jax.random.uniform(key, (*x.shape[:2], 1), out_sharding=sharding)
