"""Words with tags: from files to the first tokens of words, and from tags to entities."""

import json

import numpy as np
import pytest

from neojax.config import DataConfig
from neojax.data import tokenizer as tokenizers
from neojax.data.batch import NOT_SCORED
from neojax.data.examples import Frame
from neojax.data.tagged import (
    Tagged,
    encode_tagged,
    entities,
    entity_scores,
    read_tagged,
    tag_names,
    tokens_of,
)
from neojax.errors import NeojaxError

DATA = DataConfig(task="tagging")
CONLL = "-DOCSTART- -X- O O\n\nJohn NNP B-PER\nSmith NNP I-PER\nran VBD O\n\nOslo NNP B-LOC\n"


def test_rows_are_read_from_conll_and_json(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    rows = read_tagged(tmp_path / "a.conll", DATA)
    assert [row.words for row in rows] == [["John", "Smith", "ran"], ["Oslo"]]
    assert rows[0].tags == ["B-PER", "I-PER", "O"] and rows[1].where.endswith("a.conll:7")
    assert tag_names(rows) == ("O", "B-LOC", "B-PER", "I-PER")
    own = [{"tokens": row.words, "ner_tags": [1] * len(row.words)} for row in rows] + [{"text": "so it is"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, own)))
    again = read_tagged(tmp_path / "b.jsonl", DATA, labelled=False)
    assert again[0].tags == ["1", "1", "1"] and again[2] == (again[2].where, ["so", "it", "is"], None)
    assert tag_names(again) == ("0", "1")
    with pytest.raises(NeojaxError, match="x:1: the tag 9999999999 is the number of no class"):
        tag_names([Tagged("x:1", ["a", "b"], ["0", "9999999999"])])  # would be as many names


BAD = [
    ("a.jsonl", '{"tokens": [], "tags": []}', r"a.jsonl:1: 'tokens' is \[\]; expected a list of words"),
    ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}', "a.jsonl:1 has 1 words and 2 tags; mend the row"),
    ("a.jsonl", '{"tokens": ["a"]}', "'tags' is None; expected a list of tags; data.label names its column"),
    ("a.conll", "word\n", "a.conll:1: expected a word and its tag, got 'word'"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_what_is_wrong_with_a_row_is_told(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(NeojaxError, match=message):
        read_tagged(tmp_path / name, DATA)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_word_is_told_by_its_first_token(kind, tmp_path):
    """Whatever tokens a tokenizer makes of blanks."""
    tokenizer = tokenizers.train(["John Smithson ran to Oslo"] * 3, 280 if kind == "bpe" else 40, kind)
    words = ["John", "Smithson", "ran", "to", "Oslo"]
    own = tokenizer.encode(" ".join(words), add_special_tokens=False)
    for word, first in zip(words, tokens_of(words, own.offsets)):
        start, _ = own.offsets[first]
        assert "".join(" ".join(words)[start:].split(" ")).lower().startswith(word.lower())
    for word, last in zip(words, tokens_of(words, own.offsets, last=True)):
        assert " ".join(words)[: own.offsets[last][1]].lower().endswith(word.lower())
    (tmp_path / "a.conll").write_text("John B-PER\nSmithson I-PER\nran O\nto O\nOslo B-LOC\n")
    rows = read_tagged(tmp_path / "a.conll", DATA)
    frame, names = Frame((7,), (8,), (8,), 0, False), tag_names(rows)
    examples, (places,) = encode_tagged("a", rows, tokenizer, frame, 99, names)
    targets = examples.batch([0]).targets[0]
    assert [names[targets[place]] for place in places] == rows[0].tags
    assert (targets != NOT_SCORED).sum() == 5
    cut, (places,) = encode_tagged("a", rows, tokenizer, frame, 5, names)
    assert places[-1] == -1 and cut.n_cut == 1 and cut.batch([0]).tokens[0, 4] == 8
    with pytest.raises(NeojaxError, match="the tag 'B-LOC' is none of the model's, O, B-PER, I-PER"):
        encode_tagged("a", rows, tokenizer, frame, 99, ("O", "B-PER", "I-PER"))


def test_entities_are_those_of_conll():
    assert entities(["O", "B-PER", "I-PER", "O", "I-LOC", "I-PER", "B-PER", "B-PER"]) == {
        ("PER", 1, 3), ("LOC", 4, 5), ("PER", 5, 6), ("PER", 6, 7), ("PER", 7, 8),
    }  # fmt: skip
    assert entities(["NOUN", "NOUN", "O"]) == {("NOUN", 0, 1), ("NOUN", 1, 2)}
    assert entities(["S-PER", "S-PER"]) == {("S-PER", 0, 1), ("S-PER", 1, 2)}
    assert entities(["B", "I", "O", "B", "B"]) == {("_", 0, 2), ("_", 3, 4), ("_", 4, 5)}
    scores = entity_scores([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "B-PER"]])
    assert scores == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5})
    assert entity_scores([["O"]], [["O"]])["f1"] == 0.0
    assert np.isfinite(list(scores.values())).all()
