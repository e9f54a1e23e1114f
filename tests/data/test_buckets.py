"""Tokens in a bucket: the same batches as from a file of this machine, and no more read than is wanted."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tfrecord_writer as writer
from helpers import write_data

from neojax.config import Config, DataConfig, ModelConfig, SourceConfig
from neojax.data import tfrecord
from neojax.data.fingerprint import fingerprint
from neojax.data.loader import train_batches, validation_batches
from neojax.data.prepare import prepare
from neojax.data.sources import end_of_document_id, open_source
from neojax.data.store import TokenStore
from neojax.errors import NeojaxError
from neojax.storage.remote import BucketPath
from neojax.training.inputs import read_tokenizer

N_CTX = 16


@pytest.fixture(scope="module")
def local(tmp_path_factory, byte_tokenizer):
    folder = write_data(tmp_path_factory.mktemp("data"))
    (folder / "prepared.json").write_text(json.dumps({"tokenizer": {"end_of_document_id": 7}}))
    (folder / "tokenizer.json").write_bytes(Path(byte_tokenizer).read_bytes())
    (folder / "records").mkdir()
    tokens = np.random.default_rng(0).integers(0, 300, (40, N_CTX + 1))
    for name, part in (("a_9_25", tokens[:25]), ("a_10_15", tokens[25:])):
        writer.write(folder / "records" / f"{name}.tfrecords", part)
    return folder


@pytest.fixture(scope="module", params=["gs", "s3"])
def remote(request, local):
    """The same files in a bucket, as `gcloud storage cp -r` copies them."""
    server = request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])
    server.fs.put(f"{local}/", "bucket/data/", recursive=True)
    return f"{request.param}://bucket/data"


def batches(path, n=6):
    data = DataConfig(train=(SourceConfig(str(path), 1.0),))
    return list(itertools.islice(train_batches(data, N_CTX, 4, 3, start_step=5, rows=[1, 2]), n))


@pytest.mark.parametrize(
    "name", ["", "train", "records", "records/a_*.tfrecords", "records/a_9_25.tfrecords"]
)
def test_batches_are_those_of_the_same_files_here(local, remote, name):
    for here, there in zip(batches(f"{local}/{name}"), batches(f"{remote}/{name}"), strict=True):
        for ours, theirs in zip(here, there, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    here, there = open_source(f"{local}/{name}", "train"), open_source(f"{remote}/{name}", "train")
    assert fingerprint(here) == fingerprint(there) and here.extremes == there.extremes
    assert here.example_size == there.example_size
    np.testing.assert_array_equal(here.starts, there.starts)


def test_an_evaluation_reads_the_same(local, remote):
    here, there = (
        list(validation_batches(DataConfig(), SourceConfig(str(p)), N_CTX, 8)) for p in (local, remote)
    )
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a.targets, b.targets)


def test_what_lies_beside_the_tokens_is_found(local, remote):
    source = open_source(remote, "train")
    assert end_of_document_id(source) == 7
    config = Config(model=ModelConfig(n_vocab=300), data=DataConfig(train=(SourceConfig(remote),)))
    assert read_tokenizer(config, [source]) == (local / "tokenizer.json").read_text()


def test_a_copied_store_is_not_read_through_again(local, remote, monkeypatch):
    """Its index was made of another file of the same bytes; one that belongs to no store of these bytes is
    not believed."""
    monkeypatch.setattr(TokenStore, "chunks", lambda self: pytest.fail("all tokens were read"))
    assert TokenStore(f"{remote}/train").extremes == TokenStore(local / "train").extremes
    monkeypatch.undo()
    index = BucketPath(f"{remote}/.train.bin.index")
    other = BucketPath(f"{remote}/.validation.bin.index")
    index.write_bytes(other.read_bytes())
    reads = []
    chunks = TokenStore.chunks
    monkeypatch.setattr(TokenStore, "chunks", lambda self: reads.append(1) or chunks(self))
    for _ in range(2):  # what the first finds, the second is told
        assert TokenStore(f"{remote}/train").extremes == TokenStore(local / "train").extremes
    assert len(reads) == 1


def test_records_are_checked_and_indexed_once(remote, monkeypatch):
    for file in tfrecord.find(f"{remote}/records"):
        file.with_name(f".{file.name}.index").unlink(missing_ok=True)
    scans = []
    scan = tfrecord._scan
    monkeypatch.setattr(tfrecord, "_scan", lambda file, size: scans.append(file.name) or scan(file, size))
    for _ in range(2):
        assert open_source(f"{remote}/records", "train").n_tokens == 40 * (N_CTX + 1)
    assert sorted(scans) == ["a_10_15.tfrecords", "a_9_25.tfrecords"]


def test_a_window_is_one_request_of_its_own_bytes(remote, monkeypatch):
    source, records = TokenStore(f"{remote}/train"), open_source(f"{remote}/records", "train")
    read = []
    real = BucketPath.read_range
    monkeypatch.setattr(
        BucketPath, "read_range", lambda s, a, b: read.append((s.name, b - a)) or real(s, a, b)
    )
    source.read(100, 117)
    assert read == [("train.bin", 34)]
    read.clear()
    records.read(17 * 30, 17 * 31)
    ((name, size),) = read
    assert name == "a_10_15.tfrecords" and size < 17 * 2 + 40


def test_what_is_prepared_and_converted_is_written_here_first(local, tmp_path, monkeypatch):
    """`gs://bucket` as a path of this machine would be a folder named `gs:`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NeojaxError, match="--out gs://bucket/out is not on this machine"):
        prepare([local / "tokenizer.json"], "gs://bucket/out", train_tokenizer=300)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_or_changed_is_one_line(remote):
    with pytest.raises(NeojaxError, match=rf"no token store at {remote}/trian .*{remote}/train"):
        open_source(f"{remote}/trian", "train")
    with pytest.raises(NeojaxError, match="there are no TFRecord files at"):
        open_source(f"{remote}/none_*.tfrecords", "train")
    store = TokenStore(f"{remote}/validation")
    file = BucketPath(f"{remote}/validation.bin")
    content = file.read_bytes()
    try:
        file.write_bytes(content[:2000])
        with pytest.raises(NeojaxError, match=r"cannot read|has changed"):
            store.read(990, 1010)
        with pytest.raises(NeojaxError, match="2000 bytes, but"):
            TokenStore(f"{remote}/validation")
        file.unlink()
        with pytest.raises(NeojaxError, match=r"cannot read .*validation.bin"):
            store.read(0, 4)
        with pytest.raises(NeojaxError, match=r"validation.bin does not exist"):
            TokenStore(f"{remote}/validation")
    finally:
        file.write_bytes(content)
