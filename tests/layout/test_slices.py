"""Slices joined by a network: in the training step as the TPU's compiler leaves it, only the axis of
`mesh.dcn_shape` crosses.

A program for several slices is one slice's, run on each; what crosses is a pair of send and receive that the
host carries.
"""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from neojax.config import AttentionConfig, MeshConfig, ModelConfig, TrainConfig
from neojax.data.batch import Batch
from neojax.data.share import BATCH_DIMS
from neojax.layout.mesh import make_layout
from neojax.layout.topology import tpu_devices
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.plan.hlo import collectives
from neojax.training.optimizer import make_optimizer
from neojax.training.state import abstract_state
from neojax.training.step import make_train_step

CONFIG = ModelConfig(
    n_layer=2,
    n_embd=256,
    n_ctx=128,
    n_vocab=1024,
    attention=AttentionConfig(heads=4, types=("global",)),
)
CHIPS = 4  # of a slice
MODEL = "heads:model, mlp:model, vocab:model"
COPIES = {  # on each slice, the parameters; inside it, anything
    "data parallel over slices, FSDP inside": (
        "slices:2, data:4",
        "slices:2",
        "batch:slices+data",
        "embd:data",
    ),
    "the batch over one axis, a part of which crosses": ("data:8", "data:2", "batch:data", ""),
    "tensor parallel inside": ("slices:2, model:4", "slices:2", f"batch:slices, {MODEL}", ""),
}
PARTS = (
    "slices:2, data:4",
    "slices:2",
    "batch:slices+data",
    "embd:slices+data",
)  # of a parameter on each slice


def crossing(shape, dcn_shape, layout, param_layout):
    """Bytes of all parameters; bytes that one chip sends to the other slice in a step, by what they are for;
    the largest number of a chip in the groups of all other collectives."""
    mesh = MeshConfig(shape, layout, param_layout, dcn_shape=dcn_shape)
    lay = make_layout(mesh, tpu_devices("2xv5e:2x2"))
    model = Transformer(CONFIG, lay, Compute(dtype=jnp.bfloat16, attention_kernel="xla"))
    train = TrainConfig(batch_size=16)
    optimizer = make_optimizer(train, model.dims(), CONFIG.n_vocab)
    tokens = (1, 16, CONFIG.n_ctx)
    ids = jax.ShapeDtypeStruct(tokens, jnp.int32, sharding=lay.sharding(BATCH_DIMS, tokens))
    with jax.set_mesh(lay.mesh):
        step = make_train_step(model, optimizer, train)
        state = abstract_state(model, optimizer)
        lowered = step.lower(state, Batch(ids, ids), jax.ShapeDtypeStruct((), jnp.int32))
        found = collectives(lowered.compile().as_text())
    sent: Counter[str] = Counter()
    for one in found:
        if one.kind == "transfer":
            sent[one.operation] += one.bytes * one.times
    whole = sum(4 * math.prod(value.shape) for value in model.stored().values())
    return whole, sent, max(chip for one in found for group in one.groups for chip in group)


@pytest.fixture
def quick():
    """Compiled with little effort: the same collectives in a tenth of the time."""
    pytest.importorskip("libtpu")
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", before)


@pytest.mark.parametrize("name", COPIES)
def test_nothing_but_sums_of_gradients_crosses_slices(name, quick):
    """Each chip sends its share of the gradients, those of every parameter once, and some norms and
    losses."""
    whole, sent, last = crossing(*COPIES[name])
    assert set(sent) == {"ALL_REDUCE"}
    assert whole / CHIPS <= sent["ALL_REDUCE"] < 1.1 * whole / CHIPS
    assert last == CHIPS - 1  # of the slice that the program is for


def test_parameters_that_are_stored_over_slices_are_gathered_over_the_network(quick):
    """What the tests above would see if another axis crossed."""
    whole, sent, _ = crossing(*PARTS)
    assert sent["ALL_GATHER"] > whole / CHIPS / 4  # half of it comes from the other slice, in bfloat16
