"""Low-rank additions become part of their matrices: for export, and as weights to begin another run with."""

import string
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from neojax.layout.named import LowRank, Quantized
from neojax.models.transformer import Transformer


def merged(model: Transformer) -> Transformer:
    """`model` without low-rank additions, which its matrices have taken up, all of it in float32 and in the
    stored layout. One that has none is given back as it is."""
    if model.adapters is None:
        return model
    plain, values = model.plain(), model.adapters.joined(model.params())
    specs, dims = plain.stored(), plain.dims()
    with jax.set_mesh(model.layout.mesh):  # type: ignore[arg-type]
        whole = {name: _whole(values.pop(name), dims[name], spec.sharding) for name, spec in specs.items()}
    return plain.bind(whole).accompanied(
        model.tokenizer, model.eos_token_id, model.first_tokens, model.mask_token_id
    )


@partial(jax.jit, static_argnums=(1, 2))
def _whole(value: Any, dims: tuple[str, ...], sharding: NamedSharding) -> jax.Array:
    """A parameter [`dims`] in float32, with what is added to it."""
    if not isinstance(value, LowRank):
        return widened(value)
    letters = dict(zip(dims, string.ascii_letters))
    layers, others = [d for d in dims if d == "layers"], [d for d in dims if d != "layers"]
    n_summed = value.a.ndim - len(layers) - 1
    summed, kept = others[:n_summed], others[n_summed:]
    terms = [*layers, *summed, "rank"], [*layers, "rank", *kept], dims
    letters["rank"] = "Z"
    a, b, out = ("".join(letters[dim] for dim in term) for term in terms)
    added = jnp.einsum(f"{a},{b}->{out}", value.a, value.b, out_sharding=sharding)
    return widened(value.base) + value.scale * added


def widened(value: Any) -> jax.Array:
    """A parameter in float32, whatever it is kept in."""
    if isinstance(value, Quantized):
        return value.values * value.scale
    return value.astype(jnp.float32)
