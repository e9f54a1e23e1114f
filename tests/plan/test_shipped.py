"""Shipped configurations compile for a slice that is not here: the real training step, with fewer layers and
rows, in its own layout."""

import re
from pathlib import Path

import jax
import pytest

from neojax import config as configuration
from neojax.layout.topology import tpu_devices
from neojax.plan.compiled import compile_step

CONFIGS = Path(__file__).resolve().parents[2] / "meshconfigs"
SHIPPED = [
    "125M", "350M", "1.3B", "2.7B", "gpt3/6.7B", "gpt3/13B", "gpt3/175B", "gpt_j/6B", "neox/20B",
    "pythia/160M", "llama/3-8B", "moe", "bert/base", "albert/base",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_compiles_for_eight_chips(name):
    pytest.importorskip("libtpu")
    path = CONFIGS / f"{name}.yml"
    layers = 2 * max(1, len(configuration.load(path).model.attention.types))
    words = ["train.batch_size=16", "train.microbatch=0"]
    if name != "moe":  # which names its layers with experts
        words += [f"model.n_layer={layers}"]
    if not name.startswith(("bert", "albert")):
        words += ["model.n_ctx=512"]
    config = configuration.load(path, words)
    one = compile_step(config, tpu_devices("v5e:2x4"), quick=True)
    assert one.memory is not None and one.available == int(15.75 * 2**30)
    own = sum(one.memory.kinds.values()) + one.memory.unused
    assert own == one.memory.needed
    stored = one.model.stored()
    held = sum(jax.numpy.dtype(v.dtype).itemsize * v.size / v.sharding.mesh.size for v in stored.values())
    assert one.memory.kinds["parameters"] >= 0.99 * held  # which axes split them or not
    assert one.fits or re.search(r"175B|20B", name)
    kinds = {row.kind for row in one.moved}
    assert not one.fits or kinds & {"all-reduce", "reduce-scatter"}
