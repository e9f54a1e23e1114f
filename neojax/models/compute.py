"""How a model computes, as against what: types, recomputation, loops, kernels. None of it changes what is
computed."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout

COMPUTE_TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRODUCTS = ("query", "key", "value", "attention", "mlp_up", "mlp_gate")  # what is expensive to compute again
HOST = "pinned_host"
REMAT_POLICIES: dict[str, Any] = {
    "full": None,
    "names": jax.checkpoint_policies.save_only_these_names(*PRODUCTS),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(PRODUCTS),
        offload_src="device",
        offload_dst=HOST,
    ),
}

LAYER = "layer"  # what a layer of a pipeline's stage begins with
STAGE_POLICIES: dict[str, Any] = {
    "full": jax.checkpoint_policies.save_only_these_names(LAYER),
    "names": jax.checkpoint_policies.save_only_these_names(LAYER, *PRODUCTS),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[LAYER],
        names_which_can_be_offloaded=list(PRODUCTS),
        offload_src="device",
        offload_dst=HOST,
    ),
}
"""What a tick of a pipeline of several rounds keeps for the backward pass, by `Compute.remat`."""


@dataclass(frozen=True)
class Compute:
    """How a model computes.

    dtype: type of activations. reduce_dtype: type in which gradients of matrices are added up over devices,
    see `layout.named.trained`. remat, unroll and attention_kernel are as in the section `train` of a
    configuration. stacked: whether layers that repeat keep their parameters in one array and are scanned;
    else every layer has its own. joined: whether queries, keys and values are one parameter, for one large
    product in place of three. rounds: how often a microbatch passes the stages of a pipeline.
    """

    dtype: Any = jnp.float32
    reduce_dtype: Any = jnp.float32
    remat: str = "none"
    unroll: int = 1
    attention_kernel: str = "auto"
    stacked: bool = True
    joined: bool = False
    rounds: int = 1

    def __post_init__(self) -> None:
        for name in ("dtype", "reduce_dtype"):
            object.__setattr__(self, name, jnp.dtype(getattr(self, name)))


def compute_type(precision: str, layout: Layout) -> Any:
    """The type of activations: float32, bfloat16, or auto, bfloat16 on accelerators and float32 on CPU."""
    if precision == "auto":
        precision = "float32" if layout.platform == "cpu" else "bfloat16"
    return COMPUTE_TYPES[precision]


def turns(unroll: int | None, layout: Layout) -> int:
    """`Compute.unroll`: what is given, else all layers on GPUs, whose compiler copies what a loop over layers
    keeps for the backward pass, and one repetition elsewhere."""
    if unroll is None:
        return 0 if layout.platform == "gpu" else 1
    return unroll


def check_remat(remat: str, mesh: jax.sharding.Mesh) -> None:
    """Raises `NeojaxError` where `remat` is offload and the mesh's devices reach no memory of their host."""
    device = mesh.local_devices[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if remat == "offload" and HOST not in kinds:
        raise NeojaxError(
            f"train.remat=offload needs {HOST} memory, but {device.device_kind} has only {', '.join(kinds)}; "
            "use train.remat=names, or full to save more"
        )
