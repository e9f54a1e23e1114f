"""Rows of labelled text from the files that people have."""

import json

import numpy as np
import pytest

from neojax.config import DataConfig
from neojax.config.tasks import TASKS
from neojax.data.examples import Example, Examples, Frame, cut
from neojax.data.labelled import Row, class_of, label_names, read_rows
from neojax.errors import NeojaxError

GLUE = {
    "cola": 'gj04\t1\t\tOur friends.\ngj04\t0\t*\tThey drank "it.\n',
    "sst2": 'sentence\tlabel\nOur friends.\t1\nThey drank "it.\t0\n',
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t7\t8\tOur friends.\tB\n0\t9\t1\tThey drank "it.\tD\n',
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    '1\t2\t3\tOur friends.\tB\t1\nshort\n4\t5\t6\tThey drank "it.\tD\t0\n',
    "stsb": 'index\tsentence1\tsentence2\tscore\n0\tOur friends.\tB\t5.000\n1\tThey drank "it.\tD\t2.5\n',
    "mnli": "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tOur friends.\tB\tneutral\tentailment\n"
    '1\tThey drank "it.\tD\tneutral\tcontradiction\n',
    "qnli": "index\tquestion\tsentence\tlabel\n0\tOur friends.\tB\tentailment\n"
    '1\tThey drank "it.\tD\tnot_entailment\n',
    "rte": '{"premise": "Our friends.", "hypothesis": "B", "label": "entailment", "idx": 0}\n'
    '{"premise": "They drank \\"it.", "hypothesis": "D", "label": "not_entailment", "idx": 1}\n',
}
LABELS = {"stsb": [5.0, 2.5], "mnli": [1, 0], "qnli": [0, 1], "rte": [0, 1]}


@pytest.mark.parametrize("task", GLUE)
def test_files_of_glue_are_read_as_they_are(task, tmp_path):
    path = tmp_path / ("val.jsonl" if task == "rte" else "train.tsv")
    path.write_text(GLUE[task], encoding="utf-8")
    rows = read_rows(path, DataConfig(task=task))
    second = [("B",), ("D",)] if task not in ("cola", "sst2") else [(), ()]
    assert [row.texts for row in rows] == [("Our friends.", *second[0]), ('They drank "it.', *second[1])]
    names = label_names(rows, TASKS[task], "the file")
    labels = [row.label if TASKS[task].is_number else class_of(row.where, row.label, names) for row in rows]
    assert labels == LABELS.get(task, [1, 0])


def test_columns_are_named_or_numbered(tmp_path):
    (tmp_path / "a.csv").write_text('body,title,stars\n"one, two",x,good\nthree,y,bad\n')
    data = DataConfig(task="classification", text="title", text2="body", label="stars")
    rows = read_rows(tmp_path / "a.csv", data)
    assert rows[0].texts == ("x", "one, two")
    assert label_names(rows, TASKS["classification"], "") == ("bad", "good")
    (tmp_path / "b.tsv").write_text("good\tone\nbad\ttwo\n")
    rows = read_rows(tmp_path / "b.tsv", DataConfig(task="classification", text="1", label="0"))
    assert [(row.texts, row.label) for row in rows] == [(("one",), "good"), (("two",), "bad")]
    (tmp_path / "c.txt").write_text("2 one two\n10 three\n")
    rows = read_rows(tmp_path / "c.txt", DataConfig(task="classification"))
    assert label_names(rows, TASKS["classification"], "") == ("2", "10")
    assert class_of("", "1", ("bad", "good")) == 1


BAD = [
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', "a.jsonl:2 has no 'label'; it has text"),
    ("a.jsonl", '{"text": 3, "label": 1}', "'text' is 3; expected a text"),
    ("a.jsonl", '{"text": "a", "label": [1]}', r"'label' is \[1\]; expected the name or number of a class"),
    ("a.jsonl", "[1]", "expected an object with keys and values, got list"),
    ("a.jsonl", "{", "a.jsonl:1: not valid JSON"),
    ("a.jsonl", "", "holds no row"),
    ("a.jsonl", '{"words": "a", "label": 1}', "none of the columns words, label is a usual one for text"),
    (
        "a.jsonl",
        '{"text": "a"}',
        "none of the columns text is a usual one for labels; name it with data.label",
    ),
    ("a.tsv", "text\tlabel\nb\n", "a.tsv:2 has 1 columns, expected 2: text, label"),
    ("a.parquet", "", r"files .jsonl, .json, .tsv, .csv, .txt, .conll; name one of these"),
    ("a.txt", "positive", "expected a label, a blank and a text, got 'positive'"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_what_is_wrong_with_a_row_is_told(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(NeojaxError, match=message):
        read_rows(tmp_path / name, DataConfig(task="classification"))


def test_half_of_a_surrogate_pair_becomes_a_replacement(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d", "label": "x", "more": [{"a": "\\udc00"}]}')
    (row,) = read_rows(tmp_path / "a.jsonl", DataConfig(task="classification"))
    assert row.texts == ("a \ufffd",)


def test_rows_to_predict_may_have_no_label(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "label": null}\n{"text": "b", "label": 1}\n{"text": "c"}'
    )
    rows = read_rows(tmp_path / "a.jsonl", DataConfig(task="classification"), labelled=False)
    assert [row.label for row in rows] == [None, "1", None]
    with pytest.raises(NeojaxError, match=r"a.jsonl:1 has no 'label'"):
        read_rows(tmp_path / "a.jsonl", DataConfig(task="classification"))


def test_labels_that_cannot_be_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "a", "label": x}) for x in ("1", "x")))
    with pytest.raises(NeojaxError, match=r"a.jsonl:2: 'label' is 'x'; expected a number"):
        read_rows(tmp_path / "a.jsonl", DataConfig(task="regression"))
    rows = read_rows(tmp_path / "a.jsonl", DataConfig(task="classification"))
    with pytest.raises(NeojaxError, match=r"a.jsonl:2: the label 'x' is none of the model's, 0, 1"):
        class_of(rows[1].where, rows[1].label, ("0", "1"))
    with pytest.raises(NeojaxError, match="every row has the label '1'; expected two classes"):
        label_names(rows[:1], TASKS["classification"], "a")


@pytest.mark.parametrize("name", ["²", "--5", "-", "½"])
def test_what_only_looks_like_a_number_is_the_name_of_a_class(name):
    rows = [Row("a:1", ("b",), name), Row("a:2", ("b",), "1")]
    assert label_names(rows, TASKS["classification"], "a") == tuple(sorted((name, "1")))
    with pytest.raises(NeojaxError, match=f"a:1: the label '{name}' is none of the model's, x, y"):
        class_of("a:1", name, ("x", "y"))


def test_the_longer_text_is_cut_token_by_token():
    def slowly(a, b, room):
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        return a, b

    for a in range(7):
        for b in range(7):
            for room in range(9):
                assert cut(a, b, room) == slowly(a, b, room)


def examples(lengths, label=np.int32):
    frame = Frame((1,), (2,), (2,), 0, True)
    made = [Example(*frame.row([[9] * n, [8] * 2], 40)[:2], label(i % 2)) for i, n in enumerate(lengths)]
    return Examples("made", made, frame, 40)


def test_rows_are_framed_and_batches_are_as_long_as_their_longest_row():
    own = examples([3, 20, 60])
    batch = own.batch([0, -1], None)
    assert batch.tokens.shape == (2, 16)
    assert batch.tokens[0, :9].tolist() == [1, 9, 9, 9, 2, 8, 8, 2, 0]
    assert batch.token_types[0, :9].tolist() == [0] * 5 + [1] * 3 + [0]
    assert batch.segments.sum(axis=1).tolist() == [8, 0] and batch.labels.tolist() == [0, -1]
    assert own.batch([0, 1]).tokens.shape == (2, 32) and own.batch([2]).tokens.shape == (1, 40)
    assert own.batch([2], multiple=3).tokens.shape == (1, 42)
    assert np.isnan(examples([3], np.float32).batch([0, -1]).labels[1])
    # A process that has the second row alone makes it as long as the whole batch is.
    assert own.batch([2, 0], [1]).tokens.shape == (1, 40)


def test_every_epoch_has_all_rows_and_begins_anywhere():
    own = examples(range(1, 8))
    every = own.train_batches(3, seed=5, start_step=0, rows=range(3))
    rows = np.concatenate([next(every).segments.sum(axis=1) for _ in range(14)])
    epochs = rows.reshape(6, 7)
    assert all(sorted(epoch) == sorted(own.lengths) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    late = own.train_batches(3, seed=5, start_step=9, rows=[0, 2])
    assert next(late).segments.sum(axis=1).tolist() == rows[27:30][[0, 2]].tolist()
    held_out = [i for chosen in own.held_out(4) for i in chosen]
    assert sorted(held_out) == [-1, *range(7)]
