"""Questions about a passage: the files that they are read from, and what is wrong with a row."""

import json

import pytest

from neojax.config import DataConfig
from neojax.data.questions import Answer, read_questions
from neojax.errors import NeojaxError

PASSAGE = "Normandy is a region of France. Rollo, the first ruler of it, was a Viking."
V1, V2 = DataConfig(task="squad"), DataConfig(task="squad_v2")
NORMANDY = [{"text": "France", "answer_start": 24}, {"text": "France.", "answer_start": 24}]
ROLLO = [{"text": "Rollo", "answer_start": 32}]


def squad(*qas, context=PASSAGE):
    return {
        "version": "v2.0",
        "data": [{"title": "N", "paragraphs": [{"context": context, "qas": list(qas)}]}],
    }


def write(path, value):
    lines = value if path.suffix == ".jsonl" else [value]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_every_form_of_file_gives_the_same_questions(tmp_path):
    asked = ("Where is Normandy?", "Who was Rollo's father?")
    nested = squad(
        {"id": "a", "question": asked[0], "answers": NORMANDY, "is_impossible": False},
        {"id": "b", "question": asked[1], "answers": [], "plausible_answers": ROLLO, "is_impossible": True},
    )
    flat = [
        {"id": "a", "question": asked[0], "context": PASSAGE,
         "answers": {"text": [a["text"] for a in NORMANDY], "answer_start": [24, 24]}},
        {"id": "b", "question": asked[1], "context": PASSAGE, "answers": {"text": [], "answer_start": []}},
    ]  # fmt: skip
    listed = [
        {"ask": row["question"], "passage": PASSAGE, "gold": row["answers"], "id": row["id"]} for row in flat
    ]
    listed[0]["gold"] = NORMANDY
    read = [
        read_questions(write(tmp_path / "squad.json", nested), V2),
        read_questions(write(tmp_path / "flat.jsonl", flat), V2),
        read_questions(write(tmp_path / "data.json", {"data": flat}), V2),
        read_questions(
            write(tmp_path / "list.json", listed),
            DataConfig(task="squad_v2", text="ask", text2="passage", label="gold"),
        ),
    ]  # fmt: skip
    first = read[0]
    assert [(q.id, q.text, q.context) for q in first] == [(n, t, PASSAGE) for n, t in zip("ab", asked)]
    assert first[0].answers == (Answer("France", 24), Answer("France.", 24)) and first[1].answers == ()
    for others in read[1:]:
        assert [q._replace(where="") for q in others] == [q._replace(where="") for q in first]
    assert first[0].where.endswith("squad.json, question a") and read[1][1].where.endswith("flat.jsonl:2")


def test_questions_to_answer_need_no_answers(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "Who?", "context": PASSAGE}])
    (found,) = read_questions(path, V1, labelled=False)
    assert found.answers is None and found.id == "1"


ROW = {"id": "a", "question": "Who?", "context": PASSAGE, "answers": ROLLO}
BAD = [
    ({"answers": [{"text": "Rollo", "answer_start": 30}]},
     "the answer 'Rollo' does not stand at answer_start=30; it stands at 32; mend the row"),
    ({"answers": [{"text": "Rolo", "answer_start": 32}]}, "it stands nowhere in the passage"),
    ({"answers": [{"text": " ", "answer_start": 0}]}, "the text of an answer is ' '; expected some words"),
    ({"answers": [{"text": "Rollo"}]}, "answer_start is None; expected the number of a character"),
    ({"answers": {"text": ["a"], "answer_start": []}}, "expected as many texts in 'text' as numbers"),
    ({"answers": "Rollo"}, "'answers' is Rollo; expected a list of objects with 'text' and 'answer_start'"),
    ({"answers": []}, "has no answer; leave it out, or set data.task=squad_v2"),
    ({"answers": None}, "has no 'answers'; it has id, question, context, answers"),
    ({"context": None}, "'context' is 'None'; expected a text"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_wrong_with_a_row_is_told(change, message, tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROW, {**ROW, "id": "b", **change}])
    with pytest.raises(NeojaxError, match=f"rows.jsonl:2.*{message}"):
        read_questions(path, V1)
    nested = {"id": "b", "question": "Who?", "answers": ROLLO, **change}
    path = write(tmp_path / "squad.json", squad(nested, context=nested.pop("context", PASSAGE)))
    with pytest.raises(NeojaxError, match=f"squad.json, question b.*{message.partition(';')[0]}"):
        read_questions(path, V1)


FILES = [
    ({"data": [{"paragraphs": [{"context": PASSAGE}]}]}, r"data\[0\].paragraphs\[0\] has no list 'qas'"),
    ({"rows": []}, r'expected {"data": \[...\]}, as SQuAD has it, or a list of questions'),
    ({"data": []}, "holds no question"),
    ([ROW, ROW], "row 2 and .*row 1 have the same id, 'a'"),
    (squad(*[{"id": "a", "question": "Who?", "answers": ROLLO}] * 2), "a.json: two have the same id, 'a'"),
    ([{"question": "Who?"}], r"row 1: 'context' is not there; it has question"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_what_is_wrong_with_a_file_is_told(content, message, tmp_path):
    with pytest.raises(NeojaxError, match=message):
        read_questions(write(tmp_path / "a.json", content), V1)
