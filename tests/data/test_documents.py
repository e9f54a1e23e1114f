"""Documents that stand apart: which document a position belongs to, where positions restart, what is not
scored."""

import itertools

import jax
import numpy as np
import pytest
import tfrecord_writer as writer
from tokenizers import Tokenizer

from neojax.config import DataConfig, SourceConfig
from neojax.data.loader import train_batches, validation_batches
from neojax.data.store import StoreWriter
from neojax.errors import NeojaxError

N_CTX, END = 8, 0


def written(folder, documents, note=True):
    """A folder as `neojax prepare` writes it, without its end-of-document id where `note` is false."""
    folder.mkdir()
    with StoreWriter(folder / "validation", 100) as out:
        out.add(np.concatenate(documents), [len(document) for document in documents])
    about = '{"tokenizer": {"end_of_document_id": 0}}' if note else "{}"
    (folder / "prepared.json").write_text(about)
    return folder


def rows_of(path, n_ctx=N_CTX, batch_size=1, **settings):
    """Every row of one pass: (tokens, targets, segments, positions)."""
    data = DataConfig(isolate_documents=True, **settings)
    batches = validation_batches(data, SourceConfig(str(path)), n_ctx, batch_size)
    return [
        tuple(field.tolist() for field in row)
        for batch in batches
        for row in zip(batch.tokens, batch.targets, batch.segments, batch.positions)
    ]


def test_an_end_of_document_token_begins_the_document_after_it(tmp_path):
    """And is the last target of the one before it, so that every token but the first is scored, as ever."""
    store = written(tmp_path / "s", [[11, 12, END], [21, END], [31, 32, 33, 34, 35, END], [41, END]])
    assert rows_of(store) == [
        (
            [11, 12, END, 21, END, 31, 32, 33],
            [12, END, 21, END, 31, 32, 33, 34],
            [1, 1, 2, 2, 3, 3, 3, 3],
            [0, 1, 0, 1, 0, 1, 2, 3],
        ),
        (
            [34, 35, END, 41, 0, 0, 0, 0],
            [35, END, 41, END, -1, -1, -1, -1],
            [1, 1, 2, 2, 0, 0, 0, 0],
            [0, 1, 0, 1, 0, 0, 0, 0],
        ),
    ]


def test_a_window_may_begin_between_documents(tmp_path):
    store = written(tmp_path / "s", [[*range(11, 19), END], [21, 22, END]])
    first, second = rows_of(store)
    assert first[2:] == ([1] * 8, list(range(8)))
    assert second == (
        [END, 21, 22] + [0] * 5,
        [21, 22, END] + [-1] * 5,
        [1] * 3 + [0] * 5,
        [0, 1, 2] + [0] * 5,
    )


@pytest.mark.parametrize("note", [True, False])
def test_where_documents_have_no_end_their_first_token_is_not_scored(tmp_path, note):
    """Neither known by its id nor there: what stands before it is of another document."""
    store = written(tmp_path / "s", [[11, 12, 13], [], [21], [31, 32], [41, 42, 43]], note)
    assert rows_of(store) == [
        (
            [11, 12, 13, 21, 31, 32, 41, 42],
            [12, 13, -1, -1, 32, -1, 42, 43],
            [1, 1, 1, 2, 3, 3, 4, 4],
            [0, 1, 2, 0, 0, 1, 0, 1],
        )
    ]


def test_the_end_of_a_document_is_known_by_its_tokenizer(tmp_path, byte_tokenizer):
    """data.tokenizer, or the one beside the tokens; its end is <|endoftext|>, id 0."""
    documents = [[11, END], [21, 22, END], [31, 32, END]]
    bare = written(tmp_path / "bare", documents, note=False)
    noted = rows_of(written(tmp_path / "noted", documents))
    assert Tokenizer.from_file(str(byte_tokenizer)).token_to_id("<|endoftext|>") == END
    assert rows_of(bare) != noted == rows_of(bare, tokenizer=str(byte_tokenizer))
    (bare / "tokenizer.json").write_bytes(byte_tokenizer.read_bytes())
    assert rows_of(bare) == noted


def test_examples_of_one_size_are_cut_behind_their_ends(tmp_path, byte_tokenizer):
    """What gpt-neo wrote: every example is a window that may begin and end within a document."""
    examples = [[12, 13, END, 21, END, 31, 32, 33, 34], [35, END, 41, 42, 43, 44, 45, 46, END]]
    file = writer.write(tmp_path / "x.tfrecords", examples)
    with pytest.raises(NeojaxError, match=r"x\.tfrecords.*examples of 9 tokens.*data\.tokenizer"):
        rows_of(file)
    first, second = rows_of(file, tokenizer=str(byte_tokenizer))
    assert first[2:] == ([1, 1, 2, 2, 3, 3, 3, 3], [0, 1, 0, 1, 0, 1, 2, 3])
    assert second[1:3] == (examples[1][1:], [1] + [2] * 7)


def test_examples_of_uneven_sizes_are_documents(tmp_path, byte_tokenizer):
    file = writer.write(tmp_path / "x.tfrecords", [[11, 12], [21, 22, 23], [31, END, 41, 42]])
    ((tokens, targets, segments, positions),) = rows_of(file)
    assert tokens == [11, 12, 21, 22, 23, 31, END, 41]
    assert targets == [12, -1, 22, 23, -1, END, 41, 42]
    assert segments == [1, 1, 2, 2, 2, 3, 3, 3]
    ((_, targets, segments, positions),) = rows_of(file, tokenizer=str(byte_tokenizer))
    assert targets == [12, -1, 22, 23, -1, END, 41, 42]
    assert segments == [1, 1, 2, 2, 2, 3, 4, 4] and positions == [0, 1, 0, 1, 2, 0, 0, 1]


def test_tokens_targets_and_order_are_those_of_a_run_that_does_not_isolate(tmp_path):
    """And are the same from any step, for any reader."""
    documents = [[*np.random.default_rng(i).integers(1, 100, i % 7), END] for i in range(200)]
    store = SourceConfig(str(written(tmp_path / "s", documents) / "validation"))

    def batches(isolate, start=0, rows=None):
        data = DataConfig(train=(store,), isolate_documents=isolate, prefetch=2)
        return list(itertools.islice(train_batches(data, N_CTX, 4, 5, start, rows=rows), 40 - start))

    whole = batches(True)
    for apart, plain in zip(whole, batches(False), strict=True):
        np.testing.assert_array_equal(apart.tokens, plain.tokens)
        np.testing.assert_array_equal(apart.targets, plain.targets)
        assert plain.segments is plain.positions is None
        assert {field.dtype for field in jax.tree.leaves(apart)} == {np.dtype(np.int32)}
    parts = zip(batches(True, 17, [0, 1]), batches(True, 17, [2, 3]), strict=True)
    for batch, pair in zip(whole[17:], parts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda *x: np.concatenate(x), *pair))


def test_a_batch_without_a_row_is_padding(tmp_path):
    """A reader whose rows of the last batch are all behind the end yields it all the same."""
    store = SourceConfig(str(written(tmp_path / "s", [[11, 12, END]])))
    (batch,) = validation_batches(DataConfig(isolate_documents=True), store, N_CTX, 4, rows=[2, 3])
    assert not batch.segments.any() and (batch.targets == -1).all() and batch.positions.shape == (2, N_CTX)
