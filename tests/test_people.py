"""The labelled text of examples/people.py is what its page says: read as it is, and of names that are new."""

import importlib.util
from pathlib import Path

from neojax.config import DataConfig
from neojax.data.questions import read_questions
from neojax.data.tagged import entities, read_tagged

SCRIPT = Path(__file__).parent.parent / "examples" / "people.py"


def test_labelled_text_is_read_and_its_held_out_names_are_new(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("people", SCRIPT)
    people = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(people)
    people.ROWS = {"train": (200, 60), "dev": (40, 40)}
    people.write(tmp_path)
    assert "entities: " in capsys.readouterr().out
    names = {}
    for split in ("train", "dev"):
        rows = read_tagged(tmp_path / f"entities.{split}.conll", DataConfig(task="tagging"))
        names[split] = {
            " ".join(row.words[first:end])
            for row in rows
            for kind, first, end in entities(row.tags)
            if kind != "PER"
        }
        asked = read_questions(tmp_path / f"questions.{split}.json", DataConfig(task="squad_v2"))
        assert len(asked) == people.ROWS[split][1]
        assert {bool(question.answers) for question in asked} == {True, False}
    assert names["train"] and not names["train"] & names["dev"]
