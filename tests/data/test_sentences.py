"""Sentences: where they are cut, and that a store keeps them and changes nothing else."""

import json
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer

from neojax.data import sentences, tokenizer
from neojax.data.prepare import prepare
from neojax.data.sentences import split
from neojax.data.store import StoreWriter, TokenStore
from neojax.errors import NeojaxError


@pytest.mark.parametrize(
    "text, parts",
    [
        ("One. Two! Three? four", ["One.", " Two!", " Three? four"]),
        ("Dr. No met J. Doe at 3 p.m. in U.S. Then", ["Dr. No met J. Doe at 3 p.m. in U.S. Then"]),
        ("Plan b. It is I. Yes", ["Plan b.", " It is I.", " Yes"]),
        ('He said "Go." Then (home.) "So?" I', ['He said "Go."', " Then (home.)", ' "So?"', " I"]),
        ("It is 3.14 now. 5 left", ["It is 3.14 now.", " 5 left"]),
        ("a\nb. C\n\n\nd\n \nlast", ["a\nb.", " C", "\n\n\nd", "\n \nlast"]),
        ("吃了吗？吃了。好！", ["吃了吗？", "吃了。", "好！"]),
        ("Он ушёл. Она нет. и всё . Ёж", ["Он ушёл.", " Она нет. и всё .", " Ёж"]),
        ("no end", ["no end"]),
        ("  \n ", ["  \n "]),
    ],
)  # fmt: skip
def test_sentences_end_at_marks_before_what_may_begin_one(text, parts):
    assert split(text, "marks") == parts


def test_every_line_is_a_sentence_and_blank_ones_belong_to_the_next():
    assert split("a b\n\nc  \n d\n", "lines") == ["a b", "\n\nc", "  \n d\n"]


def test_sentences_joined_are_the_text_and_none_is_blank(shared_data):
    text = (shared_data / "eval" / "wikitext-2-raw.test.txt").read_text(encoding="utf-8")[:300_000]
    text += (shared_data / "archives" / "blns.txt").read_text(encoding="utf-8")
    for way in sentences.WAYS:
        parts = split(text, way)
        assert "".join(parts) == text and all(part.strip() for part in parts)
        assert len(parts) > 1000


TEXTS = ["One a. Two b. Three", "X.\n\n \n\nY. Z is. ", "alone", "\u200b", "E. F g. H i."]


def test_a_store_keeps_sentences_and_its_documents_are_as_without(tmp_path, byte_tokenizer):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS * 30))
    options = {"tokenizer": byte_tokenizer, "validation": 0.1}
    prepare([source], tmp_path / "plain", **options)
    counts = prepare([source], tmp_path / "kept", **options, sentences="marks", workers=2)
    for side in ("train", "validation"):
        plain, kept = TokenStore(tmp_path / "plain" / side), TokenStore(tmp_path / "kept" / side)
        assert plain.prefix.with_suffix(".bin").read_bytes() == kept.prefix.with_suffix(".bin").read_bytes()
        assert np.array_equal(plain.starts, kept.starts) and kept.n_documents == plain.n_documents
        starts, bounds = kept.sentences
        assert getattr(counts, side).sentences == len(starts) - 1 == bounds[-1]
        decode = Tokenizer.from_file(str(byte_tokenizer)).decode
        for i in range(kept.n_documents):
            cut = starts[bounds[i] : bounds[i + 1] + 1]
            parts = [kept.read(a, b) for a, b in pairwise(cut)]
            assert parts[-1][-1] == 0  # the end of the document belongs to the last sentence
            texts = [decode(part[part != 0].tolist()) for part in parts]
            assert texts == split("".join(texts), "marks")
    assert json.loads((tmp_path / "kept" / "prepared.json").read_text())["sentence_ends"] == "marks"


def test_what_has_no_tokens_is_no_sentence(tmp_path, shared_data):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "One.\n\u200b\nTwo."}) + '\n{"text": "\u200b"}\n')
    vocab = shared_data / "tokenizers" / "bert-uncased.vocab.txt"
    prepare([tmp_path / "a.jsonl"], tmp_path / "o", tokenizer=vocab, validation=0, sentences="lines")
    store = TokenStore(tmp_path / "o" / "train")
    assert [part.tolist() for part in store.sentences] == [[0, 2, 5, 6], [0, 2, 3]]
    assert store.documents(1).tolist() == [102]


def test_a_blank_line_ends_a_document_where_asked(tmp_path, byte_tokenizer):
    (tmp_path / "a.txt").write_text("a b\nc\n\n \nd\ne f\n\n")
    options = {"tokenizer": byte_tokenizer, "validation": 0, "sentences": "lines", "paragraphs": True}
    prepare([tmp_path / "a.txt"], tmp_path / "o", **options)
    store = TokenStore(tmp_path / "o" / "train")
    decode = tokenizer.load(byte_tokenizer).decode
    assert [decode(store.documents(i)[:-1].tolist()) for i in range(2)] == ["a b\nc", "d\ne f"]
    assert store.n_documents == 2 and store.sentences[1].tolist() == [0, 2, 4]
    with pytest.raises(NeojaxError, match="--sentences words: expected one of lines, marks"):
        prepare([tmp_path / "a.txt"], tmp_path / "p", tokenizer=byte_tokenizer, sentences="words")


def test_a_writer_takes_sentences_and_whole_documents_alike(tmp_path):
    with StoreWriter(tmp_path / "s", 100) as writer:
        writer.add(np.arange(6), np.array([1, 2, 3]), np.array([2, 1]))
        writer.add(np.arange(4), np.array([4]))
        writer.append(np.arange(5))
        writer.end_document()
    store = TokenStore(tmp_path / "s")
    assert store.starts.tolist() == [0, 3, 6, 10, 15] and store.n_documents == 4
    assert store.sentences[1].tolist() == [0, 2, 3, 4, 5]
    assert store.starts_within(1, 10).tolist() == [3, 6]
