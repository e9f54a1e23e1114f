import itertools
import os
import struct

import jax
import numpy as np
import pytest
import tfrecord_writer as writer

from neojax.config import DataConfig, SourceConfig
from neojax.data import ranges, record_index, tfrecord
from neojax.data.loader import check_ids, train_batches, validation_batches
from neojax.data.prepare import prepare
from neojax.data.sources import open_source
from neojax.data.store import TokenStore
from neojax.data.tfrecord import TFRecords
from neojax.errors import NeojaxError

N_CTX = 8
AWKWARD = [0, 1, 127, 128, 300, 16383, 16384, 50256, 2**21 - 1, 2**21, 2**31 - 1, 2**62]


def data(*sources, **options) -> DataConfig:
    return DataConfig(train=tuple(SourceConfig(str(p), w) for p, w in sources), **options)


def take(n, *args, **options):
    return list(itertools.islice(train_batches(*args, **options), n))


def stream(path) -> list[int]:
    source = open_source(path, "train")
    return source.read(0, source.n_tokens).tolist()


@pytest.fixture
def fixed(tmp_path):
    """Forty examples of N_CTX + 1 tokens, over two files."""
    tokens = np.arange(40 * (N_CTX + 1)).reshape(40, -1)
    writer.write(tmp_path / "a_0_25.tfrecords", tokens[:25])
    writer.write(tmp_path / "a_1_15.tfrecords", tokens[25:])
    return tmp_path / "a_*.tfrecords"


@pytest.mark.parametrize("packed", [True, False])
def test_token_ids_come_back_whatever_their_width_and_encoding(tmp_path, packed):
    file = writer.write(tmp_path / "x.tfrecords", [AWKWARD, [], [5], AWKWARD[::-1]], packed)
    assert stream(file) == [*AWKWARD, 5, *AWKWARD[::-1]]
    source = open_source(file, "train")
    for start, stop in itertools.combinations(range(source.n_tokens + 1), 2):
        assert source.read(start, stop).tolist() == stream(file)[start:stop]
    assert source.extremes == (0, 2**62)


def test_a_list_in_several_parts_beside_other_features_is_whole(tmp_path):
    parts = (
        writer.int64_list([7, 300]) + writer.int64_list([1, 2], packed=False) + writer.int64_list([1 << 20])
    )
    features = {"a": writer.field(1, b""), "text": writer.field(3, parts), "z": writer.field(2, b"")}
    (tmp_path / "x.tfrecords").write_bytes(writer.frame(writer.example(features)))
    assert stream(tmp_path / "x.tfrecords") == [7, 300, 1, 2, 1 << 20]


def test_a_file_a_folder_and_a_glob_are_read_in_natural_order(tmp_path):
    for i in (0, 2, 10):
        writer.write(tmp_path / f"pile_{i}_1.tfrecords", [[i, i]])
    (tmp_path / "notes.txt").write_text("no record")
    everything = [0, 0, 2, 2, 10, 10]
    assert stream(tmp_path) == stream(tmp_path / "pile_*.tfrecords") == everything
    assert stream(tmp_path / "pile_2_1.tfrecords") == [2, 2]


def test_examples_of_the_context_length_are_the_windows(fixed):
    examples = np.arange(40 * (N_CTX + 1)).reshape(40, -1)
    batches = list(validation_batches(DataConfig(), SourceConfig(str(fixed)), N_CTX, 4))
    np.testing.assert_array_equal(np.concatenate([b.tokens for b in batches]), examples[:, :-1])
    np.testing.assert_array_equal(np.concatenate([b.targets for b in batches]), examples[:, 1:])
    rows = np.concatenate([b.tokens[:, 0] for b in take(10, data((fixed, 1)), N_CTX, 4, 0)])
    assert sorted(rows) == examples[:, 0].tolist()


@pytest.mark.parametrize(
    "sizes", [[N_CTX + 1] * 5 + [4], [3, 0, 1, 100, 2], [N_CTX] * 6, [2 * N_CTX + 1] * 3]
)
def test_examples_of_other_lengths_are_one_stream_of_which_nothing_is_lost(tmp_path, sizes, make_store):
    tokens = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    file = writer.write(tmp_path / "x.tfrecords", tokens)
    ours = list(validation_batches(DataConfig(), SourceConfig(str(file)), N_CTX, 2))
    store = list(validation_batches(DataConfig(), SourceConfig(make_store("s", sizes)), N_CTX, 2))
    for a, b in zip(ours, store, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.targets, b.targets)


def test_a_mixture_with_a_token_store_resumes_at_any_step_and_shards(fixed, make_store):
    config = data((fixed, 3.0), (make_store("s", [500], first=10_000), 1.0))
    whole = take(20, config, N_CTX, 4, seed=3)
    firsts = np.concatenate([b.tokens[:, 0] for b in whole])
    assert abs((firsts < 10_000).sum() - 60) <= 2
    resumed = take(13, config, N_CTX, 4, seed=3, start_step=7)
    shards = [take(13, config, N_CTX, 4, 3, 7, rows=rows) for rows in ([0, 1], [2, 3])]
    for batch, again, *parts in zip(whole[7:], resumed, *shards, strict=True):
        whole_again = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        for own, other, joined in zip(*map(jax.tree.leaves, (batch, again, whole_again)), strict=True):
            np.testing.assert_array_equal(own, other)
            np.testing.assert_array_equal(own, joined)


def test_a_late_step_is_reached_without_the_steps_before(fixed):
    late = take(3, data((fixed, 1)), N_CTX, 4, 0, start_step=10**15)
    again = take(1, data((fixed, 1)), N_CTX, 4, 0, start_step=10**15 + 2)
    for own, other in zip(jax.tree.leaves(late[2]), jax.tree.leaves(again[0]), strict=True):
        np.testing.assert_array_equal(own, other)


def test_the_index_is_made_once_and_anew_where_it_no_longer_holds(tmp_path, monkeypatch):
    file = writer.write(tmp_path / "x.tfrecords", [[1, 2, 3], [4]])
    index = tmp_path / ".x.tfrecords.index"
    scans = []
    scan = tfrecord._scan
    monkeypatch.setattr(tfrecord, "_scan", lambda *a: scans.append(a) or scan(*a))
    assert stream(file) == stream(file) == [1, 2, 3, 4] and len(scans) == 1
    good = index.read_bytes()
    damaged = [b"", good[:-8], good + good[-8:], b"x" + good[1:], good[:-1] + bytes([good[-1] ^ 1])]
    for bad in damaged:
        index.write_bytes(bad)
        scans.clear()
        assert stream(file) == [1, 2, 3, 4] and len(scans) == 1 and index.read_bytes() == good
    writer.write(file, [[4, 3], [2, 1]])  # as long as before
    os.utime(file, ns=(1, 1))
    assert stream(file) == [4, 3, 2, 1]


def test_the_index_goes_to_the_cache_where_the_folder_cannot_be_written(tmp_path, monkeypatch):
    file = writer.write(tmp_path / "x.tfrecords", [[1, 2]])
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (tmp_path / ".x.tfrecords.index").mkdir()  # nothing can be written there, even by root
    assert stream(file) == [1, 2]
    (kept,) = (cache / "neojax").iterdir()
    assert record_index.load(file, ranges.stat(file)).counts.tolist() == [2]
    kept.unlink()
    cache.joinpath("neojax").rmdir()
    cache.joinpath("neojax").write_text("in the way")
    assert stream(file) == [1, 2]


def frames():
    return [writer.frame(writer.tokens_example(t)) for t in ([1, 2, 3], [4, 5, 600])]


def damage(at, raw):
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


FIRST = len(frames()[0])
BAD = {
    "empty": (b"", "cut short: 0 bytes end in the record at offset 0"),
    "text": (b"some other file" * 5, "not a TFRecord file: no valid record at offset 0"),
    "gzip": (b"\x1f\x8b" + b"x" * 50, "compressed with gzip"),
    "header": (b"".join(frames())[: FIRST + 5], f"cut short: .* offset {FIRST}"),
    "data": (b"".join(frames())[:-6], f"cut short: .* offset {FIRST} needs 6 more bytes"),
    "length": (damage(FIRST, b"".join(frames())), f"bad checksum of the length at offset {FIRST}"),
    "content": (damage(FIRST + 14, b"".join(frames())), f"bad checksum of the record at offset {FIRST}"),
    "crc": (damage(2 * FIRST, b"".join(frames())), f"bad checksum of the record at offset {FIRST}"),
    "feature": (
        frames()[0] + writer.frame(writer.example({"label": writer.field(3, b"")})),
        f"offset {FIRST} .*no feature 'text'; its features: label",
    ),
    "kind": (writer.frame(writer.example({"text": writer.field(1, b"ab")})), "list of bytes, expected int64"),
    "other": (writer.frame(b"no protobuf"), "offset 0 holds no token ids"),
    "varint": (
        writer.frame(writer.example({"text": writer.field(3, writer.field(1, b"\x01\x80"))})),
        "varint without end",
    ),
    "long": (
        writer.frame(writer.example({"text": writer.field(3, writer.field(1, b"\x80" * 11 + b"\x01"))})),
        "over ten bytes",
    ),
    "huge": (struct.pack("<QI", 2**63, writer.masked_crc(struct.pack("<Q", 2**63))), "cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_offset(tmp_path, name):
    raw, cause = BAD[name]
    file = tmp_path / "bad.tfrecords"
    file.write_bytes(raw)
    with pytest.raises(NeojaxError, match=cause) as e:
        TFRecords(file, [file])
    assert str(file) in str(e.value) and "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == [file]


def test_missing_files_are_named(tmp_path):
    for path in (tmp_path / "no.tfrecords", tmp_path / "no_*.tfrecords"):
        with pytest.raises(NeojaxError, match=r"data\.train: there are no TFRecord files at"):
            open_source(path, "train")


def test_ids_outside_the_vocabulary_are_named(tmp_path):
    file = writer.write(tmp_path / "x.tfrecords", [[1, 2], [99]])
    check_ids([open_source(file, "train")], 100)
    with pytest.raises(NeojaxError, match=r"x\.tfrecords holds id 99, but model\.n_vocab=99"):
        check_ids([open_source(file, "train")], 99)
    negative = writer.write(tmp_path / "y.tfrecords", [[1, -2]])
    with pytest.raises(NeojaxError, match="negative id -2"):
        check_ids([open_source(negative, "train")], 100)


def test_prepare_writes_them_as_they_are(tmp_path, byte_tokenizer):
    rng = np.random.default_rng(0)
    examples = [rng.integers(0, 257, 20) for _ in range(200)]
    writer.write(tmp_path / "x.tfrecords", examples)
    out = tmp_path / "out"
    counts = prepare([tmp_path / "x.tfrecords"], out, tokenizer=byte_tokenizer, validation=0.2, workers=1)
    stores = [TokenStore(out / split) for split in ("train", "validation")]
    held_out = {tuple(stores[1].documents(i)) for i in range(stores[1].n_documents)}
    assert 20 < len(held_out) < 60
    kept = [stores[0].documents(i).tolist() for i in range(stores[0].n_documents)]
    assert kept == [e.tolist() for e in examples if tuple(e) not in held_out]
    assert counts.tokens == 200 * 20


def test_prepare_takes_no_ids_beyond_the_tokenizer_and_no_damaged_file(tmp_path, byte_tokenizer):
    out = tmp_path / "out"
    writer.write(tmp_path / "x.tfrecords", [[1, 257]])
    (tmp_path / "y.tfrecords").write_bytes(b"".join(frames())[:-6])
    for name, cause in (
        ("x", "holds id 257, but the tokenizer has 257 ids"),
        ("y", "y.tfrecords is cut short"),
    ):
        with pytest.raises(NeojaxError, match=cause):
            prepare([tmp_path / f"{name}.tfrecords"], out, tokenizer=byte_tokenizer, workers=1)
        assert not out.exists()
