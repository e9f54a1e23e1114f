"""Rows with several choices: the forms in which people have them, and how they are read by a model."""

import json

import numpy as np
import pytest

from neojax.config import DataConfig
from neojax.data import tokenizer as tokenizers
from neojax.data.choices import encode_choices, read_choices
from neojax.data.examples import Frame
from neojax.errors import NeojaxError

DATA = DataConfig(task="multiple_choice")
FORMS = {
    "plain": (
        {"context": "a b", "choices": ["c", "d", "e"], "label": 1}, ("a b", ("c", "d", "e"), 1)
    ),
    "race": (
        {"article": "It rains.", "question": "It is _ .", "options": ["wet", "dry"], "answer": "B"},
        ("It rains.", ("It is wet .", "It is dry ."), 1),
    ),
    "race without a blank": (
        {"article": "It rains.", "question": "How is it?", "options": ["wet", "dry"], "answer": "A"},
        ("It rains.", ("How is it? wet", "How is it? dry"), 0),
    ),
    "hellaswag": (
        {"ctx": "He sits", "endings": ["down.", "up."], "label": "1", "ind": 3},
        ("He sits", ("down.", "up."), 1)
    ),
    "swag": (
        {"sent1": "He comes.", "sent2": "He", "ending0": "sits.", "ending1": "runs.", "ending2": "eats.",
         "ending3": "goes.", "label": 3},
        ("He comes.", ("He sits.", "He runs.", "He eats.", "He goes."), 3),
    ),
    "copa": (
        {"premise": "It rains.", "choice1": "It is wet.", "choice2": "It is dry.", "question": "effect",
         "label": 0, "idx": 4},
        ("It rains. What happened as a RESULT?", ("It is wet.", "It is dry."), 0),
    ),
    "piqa": (
        {"goal": "Dry it.", "sol1": "Heat.", "sol2": "Water.", "label": 0},
        ("Dry it.", ("Heat.", "Water."), 0)
    ),
    "winogrande": (
        {"sentence": "A cup fits a box as _ is big.", "option1": "the cup", "option2": "the box",
         "answer": "2"},
        ("A cup fits a box as", ("the cup is big.", "the box is big."), 1),
    ),
    "arc": (
        {"question": "What is wet?", "choices": {"text": ["Rain", "Sand"], "label": ["1", "2"]},
         "answerKey": "1"},
        ("What is wet?", ("Rain", "Sand"), 0),
    ),
    "arc's own file": (
        {"id": "a", "question": {"stem": "What is wet?", "choices": [
            {"text": "Sand", "label": "3"}, {"text": "Rain", "label": "4"}]}, "answerKey": "4"},
        ("What is wet?", ("Sand", "Rain"), 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_read_as_people_have_them(name, tmp_path):
    given, expected = FORMS[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(given))
    (found,) = read_choices(tmp_path / "a.jsonl", DATA)
    assert (found.context, found.choices, found.label) == expected
    label = next(key for key in ("answerKey", "answer", "label") if key in given)
    (tmp_path / "a.jsonl").write_text(json.dumps({**given, label: None}))
    (found,) = read_choices(tmp_path / "a.jsonl", DATA, labelled=False)
    assert found.label is None
    with pytest.raises(NeojaxError, match=f"a.jsonl:1 has no '{label}'"):
        read_choices(tmp_path / "a.jsonl", DATA)


def test_swag_is_read_from_its_table_and_columns_may_be_named(tmp_path):
    row, expected = FORMS["swag"]
    (tmp_path / "a.csv").write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    (found,) = read_choices(tmp_path / "a.csv", DATA)
    assert found[1:] == expected
    (tmp_path / "b.jsonl").write_text('{"stem": "a", "ends": ["b", "c"], "gold": "c"}')
    data = DataConfig(task="multiple_choice", text="stem", text2="ends", label="gold")
    assert read_choices(tmp_path / "b.jsonl", data)[0][1:] == ("a", ("b", "c"), 1)


def test_labels_of_piqa_stand_in_a_file_of_their_own(tmp_path):
    row, expected = FORMS["piqa"]
    unlabelled = json.dumps({key: value for key, value in row.items() if key != "label"})
    (tmp_path / "dev.jsonl").write_text(f"{unlabelled}\n{unlabelled}\n")
    (tmp_path / "dev-labels.lst").write_text("0\n1\n")
    found = read_choices(tmp_path / "dev.jsonl", DATA)
    assert [row.label for row in found] == [0, 1] and found[0][1:3] == expected[:2]
    (tmp_path / "dev-labels.lst").write_text("0\n")
    with pytest.raises(NeojaxError, match=r"dev-labels.lst has 1 labels, and .*dev.jsonl 2 rows"):
        read_choices(tmp_path / "dev.jsonl", DATA)


BAD = [
    ({"label": 3}, "'label' is 3; expected a choice, by its number from 0 to 2, its letter or its text"),
    ({"label": "D"}, "'label' is 'D'; expected a choice"),
    ({"label": True}, "'label' is True; expected a choice"),
    ({"choices": ["a"]}, r"'choices' is \['a'\]; expected a list of choices, 2 or more"),
    ({"choices": ["a", 3]}, "'choices' is '3'; expected a text"),
    ({"context": None}, "has no 'context'; it has context, choices, label"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_wrong_with_a_row_is_told(change, message, tmp_path):
    row, _ = FORMS["plain"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [row, {**row, **change}])))
    with pytest.raises(NeojaxError, match=f"a.jsonl:2.*{message}"):
        read_choices(tmp_path / "a.jsonl", DATA)


def test_a_file_of_another_form_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}')
    with pytest.raises(NeojaxError, match="the columns text, label are none of the usual ones for a choice"):
        read_choices(tmp_path / "a.jsonl", DATA)
    (tmp_path / "b.jsonl").write_text(json.dumps({**FORMS["copa"][0], "question": "why"}))
    with pytest.raises(NeojaxError, match="'question' is 'why'; expected cause or effect"):
        read_choices(tmp_path / "b.jsonl", DATA)


def test_every_choice_is_a_row_of_tokens_behind_what_stands_before(tmp_path):
    tokenizer = tokenizers.train(["the cat sat on a mat"] * 3, 60, "wordpiece")
    rows = [
        {"context": "the cat", "choices": ["sat", "sat on a mat"], "label": 0},
        {"context": "a " * 20, "choices": ["mat", "cat", "a"], "label": 2},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frame = Frame((50,), (51,), (51,), 0, True)
    read = encode_choices("a", read_choices(tmp_path / "a.jsonl", DATA), tokenizer, frame, 16)
    batch = read.batch([1, 0, -1])
    assert batch.tokens.shape == (3, 3, 16) and batch.labels.tolist() == [2, 0, -1] and read.n_cut == 1
    ids = {text: tokenizer.encode(text, add_special_tokens=False).ids for text in ("the cat", "sat on a mat")}
    expected = [50, *ids["the cat"], 51, *ids["sat on a mat"], 51]
    own = batch.segments[1, 1] > 0
    assert batch.tokens[1, 1][own].tolist() == expected
    assert batch.token_types[1, 1][own].tolist() == [0] * (2 + len(ids["the cat"])) + [1] * (
        len(ids["sat on a mat"]) + 1
    )
    assert not batch.segments[1, 2].any() and not batch.segments[2].any()
    assert read.batch([1, 0, -1], multiple=3).tokens.shape == (3, 3, 18)
    half = read.batch([1, 0, -1], [1])
    np.testing.assert_array_equal(half.tokens, batch.tokens[1:2])
    assert (
        read.fingerprint()
        != encode_choices(
            "a", read_choices(tmp_path / "a.jsonl", DATA)[:1], tokenizer, frame, 16
        ).fingerprint()
    )
