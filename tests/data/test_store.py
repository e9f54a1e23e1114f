import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from neojax.data import record_index
from neojax.data.loader import check_ids
from neojax.data.store import HEADER, StoreWriter, TokenStore, resolve, token_dtype
from neojax.errors import NeojaxError


def write_index(path, sizes, pointers, bounds, code=4, version=1, magic=b"MMIDIDX\x00\x00"):
    body = (
        np.array(sizes, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(bounds, "<i8").tobytes()
    )
    path.write_bytes(HEADER.pack(magic, version, code, len(sizes), len(bounds)) + body)


def test_a_real_gpt_neox_pair_is_read_as_it_is(shared_data):
    store = TokenStore(shared_data / "megatron" / "meg-gpt2-openwebtext_text_document")
    assert (store.n_documents, store.n_tokens, store.dtype) == (1000, 1_361_845, np.uint16)
    assert max(int(chunk.max()) for chunk in store.chunks()) == 4999
    assert all(store.documents(i)[-1] == 4999 for i in range(1000))
    whole = np.concatenate([store.documents(i) for i in range(1000)])
    np.testing.assert_array_equal(whole, store.read(0, store.n_tokens))


def test_real_tokens_decode_to_their_text(shared_data):
    from tokenizers import ByteLevelBPETokenizer

    folder = shared_data / "megatron"
    store = TokenStore(folder / "meg-gpt2-openwebtext_text_document")
    tokenizer = ByteLevelBPETokenizer(
        str(folder / "gpt2-tiny-vocab.json"), str(folder / "gpt2-tiny-merges.txt")
    )
    lines = (folder / "openwebtext-1000.decoded.jsonl").read_text(encoding="utf-8").splitlines()
    for i in range(0, 1000, 37):
        assert tokenizer.decode(store.documents(i)[:-1].tolist()) == json.loads(lines[i])["text"]


@pytest.mark.parametrize("n_vocab,dtype", [(65499, "<u2"), (65500, "<i4")])
def test_what_is_written_is_read_back(tmp_path, n_vocab, dtype):
    documents = [np.array(d) for d in ([1, 2, 3], [], [n_vocab - 1], [5, 6])]
    with StoreWriter(tmp_path / "s", n_vocab) as writer:
        for document in documents[:2]:
            for token in document:
                writer.append(np.array([token]))
            writer.end_document()
        writer.add(np.concatenate(documents[2:]), np.array([1, 2]))
    store = TokenStore(tmp_path / "s.idx")
    assert store.dtype == dtype == token_dtype(n_vocab)
    assert [store.documents(i).tolist() for i in range(store.n_documents)] == [d.tolist() for d in documents]
    assert store.extremes == (1, n_vocab - 1)


def test_an_empty_store_is_a_store(tmp_path):
    StoreWriter(tmp_path / "s", 10).close()
    store = TokenStore(tmp_path / "s")
    assert (store.n_documents, store.n_tokens, store.extremes[1]) == (0, 0, -1)


def test_the_index_has_the_documented_bytes(tmp_path):
    with StoreWriter(tmp_path / "s", 100) as writer:
        writer.add(np.array([7, 8, 9]), np.array([1, 2]))
    assert (tmp_path / "s.bin").read_bytes() == struct.pack("<3H", 7, 8, 9)
    assert (tmp_path / "s.idx").read_bytes() == b"MMIDIDX\x00\x00" + struct.pack(
        "<QBQQ2i2q3q", 1, 8, 2, 3, 1, 2, 0, 2, 0, 1, 2
    )


def test_sequences_out_of_order_and_documents_of_several_are_read_in_document_order(tmp_path):
    (tmp_path / "s.bin").write_bytes(np.array([50, 51, 10, 11, 12, 30, 31, 99], "<i4").tobytes())
    # The last token belongs to an unused gap-free tail: sequences 10-12 | 30-31, 50-51 | (none) | 99
    write_index(tmp_path / "s.idx", [3, 2, 2, 0, 1], [8, 20, 0, 0, 28], [0, 1, 3, 4, 5])
    store = TokenStore(tmp_path / "s")
    stream = [10, 11, 12, 30, 31, 50, 51, 99]
    assert [store.documents(i).tolist() for i in range(4)] == [[10, 11, 12], [30, 31, 50, 51], [], [99]]
    for start in range(9):
        for stop in range(start, 10):
            assert store.read(start, stop).tolist() == stream[start:stop]


@pytest.mark.parametrize(
    "sizes, pointers, is_in_order",
    [([3, 2, 0, 2, 1], [0, 12, 20, 20, 28], True), ([3, 2, 2, 0, 1], [8, 20, 0, 0, 28], False)],
)
def test_documents_that_begin_within_a_span_are_found(tmp_path, monkeypatch, sizes, pointers, is_in_order):
    """Of several sequences, of one, of an empty one, and of none; without the index being read where
    sequences lie in order."""
    (tmp_path / "s.bin").write_bytes(np.arange(8, dtype="<i4").tobytes())
    write_index(tmp_path / "s.idx", sizes, pointers, [0, 2, 2, 3, 4, 5])
    starts = TokenStore(tmp_path / "s").starts.tolist()
    store = TokenStore(tmp_path / "s")
    if is_in_order:
        monkeypatch.setattr(TokenStore, "_starts", property(lambda self: pytest.fail("reads the index")))
    for start in range(8):
        for stop in range(start, 9):
            expected = [at for at in starts[:-1] if start <= at < stop]
            assert store.starts_within(start, stop).tolist() == expected


GOOD = {"sizes": [2, 1], "pointers": [0, 8], "bounds": [0, 1, 2]}


@pytest.mark.parametrize(
    "change,cause",
    [
        ({"magic": b"TNTIDX\x00\x00\x00"}, "not a Megatron index"),
        ({"version": 2}, "version 2, expected 1"),
        ({"code": 7}, "dtype code 7"),
        ({"code": 99}, "dtype code 99"),
        ({"sizes": [2, 2]}, "16, but|says 16"),
        ({"sizes": [2, -1]}, "negative size"),
        ({"sizes": [1, 1], "pointers": [0, 4]}, "says 8"),
        ({"pointers": [0, 1 << 40]}, "truncated"),
        ({"pointers": [0, -8]}, "pointer is negative"),
        ({"pointers": [1, 8]}, "not a multiple of 4"),
        ({"bounds": [0, 1]}, "document bounds"),
        ({"bounds": [0, 2, 1, 2]}, "document bounds"),
        ({"bounds": []}, "document bounds"),
    ],
)
def test_a_malformed_store_is_one_line_that_names_the_file_and_the_cause(tmp_path, change, cause):
    (tmp_path / "s.bin").write_bytes(np.arange(3, dtype="<i4").tobytes())
    write_index(tmp_path / "s.idx", **GOOD)
    TokenStore(tmp_path / "s")
    write_index(tmp_path / "s.idx", **{**GOOD, **change})
    with pytest.raises(NeojaxError, match=cause) as e:
        TokenStore(tmp_path / "s")
    assert "\n" not in str(e.value) and str(tmp_path / "s.") in str(e.value)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("keep", [0, 1, 5, 20, -1])
def test_a_truncated_file_is_noticed(make_store, suffix, keep):
    prefix = make_store("s", [3, 4, 20])
    with open(prefix + suffix, "rb+") as f:
        f.truncate(keep % (f.seek(0, 2)))
    with pytest.raises(NeojaxError, match=r"s\.(bin|idx)"):
        TokenStore(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_file_that_is_too_long_or_missing_is_noticed(make_store, tmp_path, suffix):
    prefix = make_store("s", [3, 4])
    with open(prefix + suffix, "ab") as f:
        f.write(b"\0\0")
    with pytest.raises(NeojaxError, match=f"s{suffix}"):
        TokenStore(prefix)
    (tmp_path / f"s{suffix}").unlink()
    with pytest.raises(NeojaxError, match=f"s{suffix} does not exist"):
        TokenStore(prefix)


def test_an_exception_leaves_no_files(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "s", 10) as writer:
        writer.append(np.array([1]))
        assert not (tmp_path / "s.bin").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_resolve_takes_prefixes_and_prepared_folders(make_store, tmp_path):
    prefix = make_store("d/train", [3])
    make_store("d/validation", [3])
    assert str(resolve(prefix, "validation")) == prefix
    assert str(resolve(prefix + ".bin", "train")) == prefix
    with pytest.raises(NeojaxError, match=r"d/train, .*d/validation"):
        resolve(tmp_path / "d", "train")
    (tmp_path / "d" / "prepared.json").write_text("{}")
    assert resolve(tmp_path / "d", "validation") == tmp_path / "d" / "validation"
    with pytest.raises(NeojaxError, match=r"no token store at .*/d/trian .*d/train"):
        resolve(tmp_path / "d" / "trian", "train")
    (tmp_path / "e" / "unfinished").mkdir(parents=True)
    with pytest.raises(NeojaxError, match="unfinished"):
        resolve(tmp_path / "e", "train")


def test_the_range_of_ids_is_read_once_and_kept(make_store, monkeypatch):
    """What the writer or the first reader found is looked up; tokens that changed are read again."""
    path = make_store("a", [30, 20])
    kept = record_index.beside(Path(f"{path}.bin"))
    reads = []
    chunks = TokenStore.chunks
    monkeypatch.setattr(TokenStore, "chunks", lambda self: reads.append(1) or chunks(self))
    assert TokenStore(path).extremes == (0, 49) and not reads
    kept.unlink()
    assert TokenStore(path).extremes == (0, 49) and len(reads) == 1
    assert TokenStore(path).extremes == (0, 49) and len(reads) == 1
    kept.write_bytes(kept.read_bytes()[:-1])  # damaged
    assert TokenStore(path).extremes == (0, 49) and len(reads) == 2
    tokens = np.fromfile(f"{path}.bin", TokenStore(path).dtype)
    tokens[7] = 60
    tokens.tofile(f"{path}.bin")
    assert TokenStore(path).extremes == (0, 60) and len(reads) == 3


def test_an_index_is_read_through_once_and_again_when_it_has_changed(make_store, monkeypatch):
    """That of a large store has hundreds of millions of documents, which take seconds and gigabytes."""
    path = make_store("a", [30, 20])
    checks = []
    checked = TokenStore._checked
    monkeypatch.setattr(TokenStore, "_checked", lambda self, *a: checks.append(1) or checked(self, *a))
    assert TokenStore(path).n_tokens == 50 and not checks  # the writer knew
    os.utime(f"{path}.idx", ns=(1, 1))  # as a copy has it
    assert TokenStore(path).starts.tolist() == [0, 30, 50] and not checks
    record_index.beside(Path(f"{path}.idx")).unlink()
    for _ in range(2):
        assert TokenStore(path).read(28, 32).tolist() == [28, 29, 30, 31] and len(checks) == 1
    content = bytearray(Path(f"{path}.idx").read_bytes())
    content[HEADER.size] += 1  # the first sequence is one longer, and overlaps the second
    Path(f"{path}.idx").write_bytes(content)
    assert TokenStore(path).read(28, 33).tolist() == [28, 29, 30, 30, 31] and len(checks) == 2


def test_a_store_of_600_gigabytes_opens_at_once(tmp_path):
    """Its tokens are a hole in the file, so that reading them all would take minutes but no disk."""
    size = 300_000_000_000
    documents = np.full(size // 150_000_000, 150_000_000, np.int32)
    with StoreWriter(tmp_path / "big", 61) as writer:
        writer.add(np.zeros(0, np.uint16), documents)
        writer._smallest, writer._largest = 0, 0
        os.truncate(writer._partial[".bin"], 2 * size)
    store = TokenStore(tmp_path / "big")
    check_ids([store], 61)
    assert store.n_tokens == size and store.read(size - 3, size).tolist() == [0, 0, 0]
