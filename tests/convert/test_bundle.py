import re
from pathlib import Path

import bundle_writer as writer
import ml_dtypes
import numpy as np
import pytest

from neojax.convert.bundle import Bundle, find
from neojax.errors import NeojaxError

DATA = Path(__file__).parent / "data"


def whole(bundle, name):
    return bundle.read(name, tuple(slice(0, size) for size in bundle.shapes[name]))


def test_a_checkpoint_that_tensorflow_wrote_is_read(monkeypatch):
    monkeypatch.syspath_prepend(DATA)
    import write_bundle

    bundle = Bundle(find(DATA / "mesh_tf"))
    bundle.check(list(bundle.shapes))
    values = write_bundle.values()
    assert {*values, "global_step"} == bundle.shapes.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(whole(bundle, name).astype(np.float32), value)
    assert whole(bundle, "global_step") == write_bundle.STEP
    assert {str(whole(bundle, name).dtype) for name in values} == {"float32", "bfloat16"}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (), (7,), (2, 0, 3), (2, 3, 4)]
    found = {f"scope/{i}/weight": rng.normal(size=shapes[i % 5]).astype(np.float32) for i in range(37)}
    return found | {"half": np.ones((4, 4), ml_dtypes.bfloat16) / 3, "step": np.int64(2**40)}


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_comes_back_whole_and_in_parts(tmp_path, tensors, shards):
    bundle = Bundle(writer.write(tmp_path / "model.ckpt-7", tensors, shards))
    bundle.check(list(tensors))
    assert bundle.shapes == {name: np.shape(value) for name, value in tensors.items()}
    for name, value in tensors.items():
        np.testing.assert_array_equal(whole(bundle, name), value)
    part = bundle.read("scope/4/weight", (slice(1, 2), slice(0, 2), slice(1, 3)))
    np.testing.assert_array_equal(part, tensors["scope/4/weight"][1:2, 0:2, 1:3])


def test_a_path_means_the_newest_checkpoint_or_the_one_it_names(tmp_path, tensors):
    for step in (20, 100, 3):
        writer.write(tmp_path / f"model.ckpt-{step}", tensors)
    assert find(tmp_path).name == "model.ckpt-100"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "gs://elsewhere/model.ckpt-20"\n')
    assert find(tmp_path).name == "model.ckpt-20"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-99"\n')
    assert find(tmp_path).name == "model.ckpt-100"
    for suffix in ("", ".index", ".data-00000-of-00001"):
        assert find(tmp_path / f"model.ckpt-3{suffix}").name == "model.ckpt-3"
    assert find(tmp_path / "model.ckpt-4") is None


def test_every_damaged_byte_of_the_index_is_noticed(tmp_path):
    prefix = writer.write(
        tmp_path / "model.ckpt-1", {f"weight_{i}": np.ones(3, np.float32) for i in range(12)}
    )
    index = tmp_path / "model.ckpt-1.index"
    good = index.read_bytes()
    for at in range(0, len(good), 7):
        index.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        try:
            found = Bundle(prefix).shapes
        except NeojaxError as e:
            assert re.search(r"model\.ckpt-1\.index is damaged", str(e)) and "\n" not in str(e)
        else:  # the block of nothing and the blanks before the magic number mean nothing
            assert len(found) == 12
    for size in (0, 10, 47, len(good) // 2, len(good) - 1):
        index.write_bytes(good[:size])
        with pytest.raises(NeojaxError, match="damaged or no index"):
            Bundle(prefix)


def test_damaged_and_missing_data_is_named(tmp_path, tensors):
    prefix = writer.write(tmp_path / "model.ckpt-1", tensors, 2)
    shard = tmp_path / "model.ckpt-1.data-00001-of-00002"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1])
    with pytest.raises(NeojaxError, match=r"data-00001-of-00002 is cut short: .* scope/"):
        Bundle(prefix).check(list(tensors))
    shard.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(
        NeojaxError, match=r"data-00001-of-00002 is damaged: bad checksum of scope/0/weight at"
    ):
        whole(Bundle(prefix), "scope/0/weight")
    shard.unlink()
    with pytest.raises(NeojaxError, match="data-00001-of-00002 is missing"):
        Bundle(prefix).check(list(tensors))
