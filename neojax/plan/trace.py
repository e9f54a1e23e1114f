"""The training step of a configuration on a machine that is not here: the model's own program, as JAX traces
it.

Nothing is compiled and no device is asked. The types in the program carry the layout, as the names of
dimensions give it, so it says of every product and of every array how much of it one device has.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from neojax.config import Config
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout, fill_shape, layout_on
from neojax.layout.names import parse_shape
from neojax.models import Transformer
from neojax.models.compute import COMPUTE_TYPES, Compute
from neojax.plan.compiled import abstract_batch
from neojax.plan.machine import Machine
from neojax.training.optimizer import make_optimizer
from neojax.training.state import abstract_state
from neojax.training.step import plain_train_step


@dataclass(frozen=True)
class Elsewhere(Layout):
    """A layout over devices that are not here, of the kind `chip`."""

    chip: Any = None

    __hash__ = Layout.__hash__

    @property
    def device(self) -> Any:
        return self.chip


@dataclass(frozen=True)
class Traced:
    """A training step: its program, the model, its layout, and the configuration it is of. `arguments`: the
    state's leaves come first, then those of the batch."""

    program: Any
    config: Config
    model: Transformer
    layout: Layout
    state: Any
    batch: Any


def layout_of(config: Config, on: Machine) -> Layout:
    """The layout of `config` over the devices of a machine. Raises `NeojaxError` where it does not fit."""
    shape = fill_shape(
        parse_shape(config.mesh.shape), on.devices, f'mesh.shape="{config.mesh.shape}" on {on}'
    )
    dcn = dcn_of(config)
    if on.slices > 1 and not dcn:
        raise NeojaxError(
            f"{on} is {on.slices} slices, joined by a network; say which axis crosses it, such as "
            f"mesh.dcn_shape={next(iter(shape))}:{on.slices}"
        )
    mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Explicit,) * len(shape))
    plain = layout_on(mesh, config.mesh)
    # A fused kernel of attention on any machine: cuDNN's keeps and computes what Splash does, but asks for a
    # GPU when it is traced.
    device = SimpleNamespace(platform="tpu", device_kind=on.chip.kinds[0], process_index=0)
    return Elsewhere(mesh, plain.used, plain.stored, device)


def dcn_of(config: Config) -> dict[str, int]:
    """The part of every axis that crosses slices, as `mesh.dcn_shape` says."""
    return parse_shape(config.mesh.dcn_shape, "mesh.dcn_shape") if config.mesh.dcn_shape else {}


def trace(config: Config, on: Machine) -> Traced:
    """The training step of `config` on a machine. Raises `NeojaxError` where the layout does not fit."""
    layout = layout_of(config, on)
    train = replace(config.train, compiler_options=())
    dtype = COMPUTE_TYPES["bfloat16" if train.precision == "auto" else train.precision]
    compute = Compute(
        dtype, train.reduce_dtype, train.remat, 1, train.attention_kernel, rounds=train.pipeline_rounds
    )
    model = Transformer(config.model, layout, compute, train.lora)
    optimizer = make_optimizer(train, model.dims(), config.model.n_vocab, model.depths())
    batch = abstract_batch(config, layout)
    with jax.sharding.use_abstract_mesh(layout.mesh):  # type: ignore[arg-type]
        state = abstract_state(model, optimizer)
        step = jax.jit(plain_train_step(model, optimizer, train))
        program = step.trace(state, batch, jax.ShapeDtypeStruct((), jnp.int32)).jaxpr
    return Traced(program, config, model, layout, state, batch)
