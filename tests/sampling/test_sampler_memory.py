"""What a sampler holds: one copy of the weights, in the type that is computed in, and its caches."""

import gc

import jax
import numpy as np
import pytest
from helpers import layout_of, tiny

import neojax
from neojax.models import Transformer
from neojax.models.compute import Compute
from neojax.sampling import decode
from neojax.sampling.decode import Asked, Decoder
from neojax.sampling.logits import Controls
from neojax.training.new_run import write_run

CONFIG = tiny(n_embd=64, n_vocab=509)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "run"
    write_run(Transformer(CONFIG).init(0), path)
    return path


def live():
    gc.collect()
    return {id(array): array.nbytes for array in jax.live_arrays()}


def grown(before):
    return sum(size for key, size in live().items() if key not in before)


@pytest.mark.parametrize("dtype, width", [("float32", 4), ("bfloat16", 2)])
def test_loading_scoring_and_generating_hold_the_weights_once(run, dtype, width):
    neojax.generate(
        neojax.load(run, dtype=dtype), [1, 2, 3], max_new_tokens=4
    )  # compiles, which keeps constants
    before = live()
    model = neojax.load(run, dtype=dtype)
    weights = sum(value.nbytes for value in model.params().values())
    assert grown(before) == weights
    matrices = [
        value for value in model.params().values() if value.ndim > 1 and value.shape[0] != CONFIG.n_ctx
    ]
    count = sum(value.size for value in matrices)
    assert width * count <= weights < width * count * 1.2  # norms, biases and positions stay float32
    neojax.generate(model, [[1, 2, 3]] * 4, max_new_tokens=8)
    neojax.score(model, [[5, 6, 7]], [[4]])
    model(np.array([[1, 2, 3]], np.int32))
    assert grown(before) <= weights * 1.02  # the caches of a call end with it


@pytest.mark.parametrize("mesh", ["data:1", "data:2, model:2"])
def test_prefill_and_decoding_take_the_same_arrays_and_copy_none(mesh):
    layout = layout_of(mesh, "batch:data, heads:model, mlp:model" if "model" in mesh else "", "")
    model = Transformer(CONFIG, layout, Compute(dtype="bfloat16")).init(0)
    decoder = Decoder(model)
    weights = jax.tree.leaves(decoder._model[1])
    local = sum(a.addressable_shards[0].data.nbytes for a in weights)
    four = np.zeros(4, np.int32)
    controls = Controls(*(np.full(4, x, np.float32) for x in (0, 0, 1, 0, 1)), np.zeros(4, bool))
    asked = Asked(four + 9, np.full((4, 1), -1, np.int32), np.zeros((4, 2), np.uint32), controls)
    rows = decoder.prefill(
        np.ones((4, 8), np.int32), four, np.arange(4, dtype=np.int32), asked, {"global": 16, "local": 7}
    )
    with layout.in_force():
        place = decoder.layout.put
        done, time = place(np.zeros(4, bool), "batch"), place(np.array(8, np.int32))
        analysis = decode._decode.lower(*decoder._model, rows, time, done, 4).compile().memory_analysis()
    held = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(rows))
    assert analysis.argument_size_in_bytes < (local + held) * 1.02
    assert analysis.temp_size_in_bytes < local  # no second copy, in whatever type, while it runs
