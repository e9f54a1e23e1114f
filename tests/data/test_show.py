"""`neojax data show` prints the documents of the very batch that a step is trained on."""

import json

import numpy as np
import pytest

from neojax import config as configuration
from neojax.cli import main
from neojax.config import DataConfig, SourceConfig
from neojax.data.loader import train_batches, train_places
from neojax.data.prepare import prepare
from neojax.data.store import StoreWriter
from neojax.data.tokenizer import train as train_tokenizer

TEXTS = ["one two three " * 4, "four five", "six " * 30, "", "seven eight nine ten"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of two stores whose documents have known lengths, and a tokenizer of their text."""
    folder = tmp_path_factory.mktemp("shown")
    tokenizer = train_tokenizer(TEXTS, 270)
    for name in ("a", "b"):
        with StoreWriter(folder / name, 270) as writer:
            for text in TEXTS * 3:
                ids = np.array([*tokenizer.encode(text + name).ids, 0])
                writer.add(ids, np.array([len(ids)], np.int32))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "c.yml").write_text(
        configuration.dump(
            configuration.from_dict(
                {
                    "model": {"n_ctx": 12, "n_vocab": 270, "n_layer": 2},
                    "data": {
                        "train": [{"path": f"{folder}/a", "weight": 2}, {"path": f"{folder}/b"}],
                        "tokenizer": f"{folder}/tokenizer.json",
                    },
                    "train": {"batch_size": 4, "microbatch": 2, "seed": 3},
                }
            )
        )
    )
    (folder / "run").mkdir()
    (folder / "run" / "config.yml").write_text((folder / "c.yml").read_text())
    return folder


def shown(capsys, *args):
    assert main(["data", "show", *map(str, args)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("step", [1, 2, 40])
def test_the_rows_shown_are_those_of_the_step(prepared, capsys, step):
    config = configuration.load(prepared / "c.yml")
    rows = [
        json.loads(line) for line in shown(capsys, prepared / "c.yml", "--step", step, "--json").splitlines()
    ]
    assert [(r["step"], r["microbatch"], r["row"]) for r in rows] == [
        (step, micro, row) for micro in range(2) for row in range(2)
    ]
    batch = next(train_batches(config.data, 12, 4, 3, step - 1))
    for row, inputs, targets in zip(rows, batch.tokens, batch.targets, strict=True):
        tokens = [id for document in row["documents"] for id in document["tokens"]]
        scored = targets >= 0
        assert tokens[:-1] == inputs[: scored.sum()].tolist() and tokens[1:] == targets[scored].tolist()


def test_documents_are_told_apart_with_their_text(prepared, capsys):
    seen = set()
    for step in range(1, 6):
        for line in shown(capsys, prepared / "c.yml", "--step", step, "--json").splitlines():
            row = json.loads(line)
            store = row["source"][-1]
            for document in row["documents"]:
                text = TEXTS[document["document"] % len(TEXTS)] + store + "<|endoftext|>"
                assert document["text"] in text
                if len(document["tokens"]) == document["length"]:
                    assert document["text"] == text
                    seen.add(text)
    assert len(seen) > 2
    out = shown(capsys, prepared / "c.yml", "--step", 1)
    assert shown(capsys, prepared / "run", "--step", 1) == out
    assert out.count("=== step 1, microbatch ") == 4 and "--- document " in out and "<|endoftext|>" in out


def test_places_are_those_of_the_windows_read(prepared):
    data = DataConfig(train=(SourceConfig(f"{prepared}/a"), SourceConfig(f"{prepared}/b", 3.0)))
    batch = next(train_batches(data, 9, 8, 1, 5))
    for place, inputs in zip(train_places(data, 9, 8, 1, 5), batch.tokens, strict=True):
        tokens = place.source.read(place.start, place.stop)
        np.testing.assert_array_equal(tokens[:-1], inputs[: len(tokens) - 1])


@pytest.mark.parametrize(
    "args, words",
    [(["--step", "0"], "the first step of a run is 1"), (["--step", "x"], "invalid int"), ([], "--step")],
)
def test_what_is_wrong_is_one_line(prepared, capsys, args, words):
    try:
        status = main(["data", "show", str(prepared / "c.yml"), *args])
    except SystemExit as e:
        status = e.code
    err = capsys.readouterr().err
    assert status == 2 and words in err and err.count("\n") == 1


def test_rows_of_pairs_are_shown_as_the_model_sees_them_with_what_is_masked(tmp_path, capsys):
    texts = [
        "One two three four. Five six seven. Eight nine ten eleven.",
        "Twelve. Thirteen is it. Fourteen.",
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 3))
    options = {"train_tokenizer": 60, "tokenizer_kind": "wordpiece", "sentences": "marks", "workers": 1}
    prepare([tmp_path / "a.jsonl"], tmp_path / "data", **options, validation=0)
    raw = {
        "model": {"family": "bert", "n_ctx": 24, "n_vocab": 60, "n_layer": 1},
        "data": {"train": f"{tmp_path}/data", "pairs": "nsp"},
        "train": {"batch_size": 4, "microbatch": 2},
    }
    (tmp_path / "c.yml").write_text(configuration.dump(configuration.from_dict(raw)))
    main(["data", "show", str(tmp_path / "c.yml"), "--step", "2", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["microbatch"], row["row"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row in rows:
        assert row["label"] in (0, 1) and len(row["masked"]) == len(row["targets"]) >= 1
        whole = list(row["tokens"])
        for place, id in zip(row["masked"], row["targets"]):
            whole[place] = id
        assert (whole[0], whole[-1], whole.count(3)) == (2, 3, 2)  # [CLS] A [SEP] B [SEP]
        assert row["text"].startswith("[CLS] ") and row["text"].endswith(" [SEP]")
    main(["data", "show", str(tmp_path / "c.yml"), "--step", "2"])
    printed = capsys.readouterr().out
    assert f"microbatch 1, row 1: label {rows[3]['label']}" in printed and rows[3]["text"] in printed
