"""Functions of one device's part of arrays, which stay that where stages of a pipeline are a dimension of the
arrays.

`jax.vmap` over a dimension that is split over the mesh has `jax.shard_map` inside gather it (JAX 0.10). Here
the function that is mapped says itself what it is over all stages: the same of every device's own stage.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

_stages: ContextVar[tuple[str, ...]] = ContextVar("neojax_stages", default=())


@contextlib.contextmanager
def over_stages(axes: tuple[str, ...]) -> Iterator[None]:
    """Inside, `jax.vmap` maps over a dimension that is split over the mesh axes `axes`, one entry a part."""
    token = _stages.set(axes)
    try:
        yield
    finally:
        _stages.reset(token)


def shard_map(
    function: Callable[..., Any],
    *,
    mesh: Mesh | AbstractMesh,
    in_specs: tuple[Any, ...],
    out_specs: Any,
    check_vma: bool = True,
) -> Callable[..., Any]:
    """`jax.shard_map` of `function`, which closes over no array. Arguments are arrays or trees of them, and
    specs are of one argument each, or trees of them alike."""

    def sharded(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)

    axes = _stages.get()
    plain = sharded(function, in_specs, out_specs)
    if not axes:
        return plain
    mapped = jax.custom_batching.custom_vmap(plain)

    @mapped.def_vmap
    def of_stages(size: int, is_mapped: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def whole(spec: P) -> P:
            return P(axes, *spec)

        def specs_of(arg: Any, spec: Any, own: Any) -> Any:
            specs = jax.tree.broadcast(spec, arg, is_leaf=_is_spec)
            return jax.tree.map(lambda s, m: whole(s) if m else s, specs, own, is_leaf=_is_spec)

        specs = tuple(map(specs_of, args, in_specs, is_mapped))
        at = jax.tree.map(lambda m: 0 if m else None, is_mapped)
        outs = jax.tree.map(whole, out_specs, is_leaf=_is_spec)
        found = sharded(jax.vmap(function, in_axes=at), specs, outs)(*args)
        return found, jax.tree.map(lambda _: True, found)

    return mapped


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)
