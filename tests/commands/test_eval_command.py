"""`neojax eval`: what it measures where, and how it says it."""

import json

import numpy as np
import pytest
from helpers import failure, perturbed, tiny, written_run

import neojax
from neojax.cli import main
from neojax.commands.eval import named_tasks
from neojax.config import Config, DataConfig, SourceConfig
from neojax.data.store import StoreWriter
from neojax.data.tokenizer import train
from neojax.models import Transformer

TEXT = "the cat sat on the mat and the dog sat on the log. " * 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with held-out data of two documents."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = train([TEXT], 270)
    with StoreWriter(folder / "held_out", 270) as writer:
        for text in ("the cat sat", TEXT):
            ids = [*tokenizer.encode(text).ids, 0]
            writer.add(np.array(ids), np.array([len(ids)]))
    data = DataConfig(validation=(SourceConfig(path=str(folder / "held_out")),))
    config = Config(model=tiny(n_layer=2, n_ctx=64, n_vocab=tokenizer.get_vocab_size()), data=data)
    params = perturbed(Transformer(config.model).init(0).params())
    run = folder / "run"
    run.mkdir()
    return written_run(run, config, params, tokenizer)


def bad(folder):
    (folder / "a.txt").write_text("2 the cat\n")
    return folder / "a.txt"


def evaluated(capsys, *arguments):
    assert main(["eval", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fails(capsys, *arguments):
    return failure(capsys, "eval", *arguments)


def test_the_held_out_data_of_a_run_is_measured_and_each_document_where_asked(run, capsys):
    rows = evaluated(capsys, run, "--json", "--by-document", "mesh.cpu_devices=8").splitlines()
    *parts, whole = map(json.loads, rows)
    scores = neojax.score(neojax.load(run), ["the cat sat", TEXT])
    for part, found in zip(parts, scores, strict=True):
        assert part["tokens"] == len(found.tokens)
        assert part["nats_per_token"] == pytest.approx(-found.logprob / len(found.tokens), rel=1e-5)
    assert whole["documents"] == 2 and whole["bytes"] == len("the cat sat" + TEXT)
    loss = -sum(found.logprob for found in scores) / sum(len(found.tokens) for found in scores)
    assert whole["nats_per_token"] == pytest.approx(loss, rel=1e-5)
    assert whole["standard_errors_over"] == "documents" and whole["nats_per_token_stderr"] > 0


def test_text_files_are_measured_in_a_table(run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    out = evaluated(capsys, run, str(tmp_path / "a.txt"), "--stride", "16")
    first, *rest = out.splitlines()
    assert first.startswith(f"{tmp_path / 'a.txt'}: 1 documents, ") and f"{len(TEXT)} bytes" in first
    assert [line.split("  ")[1] for line in rest] == [
        "nats per token",
        "perplexity",
        "bits per byte",
        "word perplexity",
        "likeliest token",
    ]


def test_tasks_of_local_files_are_a_line_each(run, tmp_path, capsys):
    (tmp_path / "sst2.txt").write_text("1 the cat\n0 the dog sat\n")
    (tmp_path / "crows.csv").write_text("sent_more,sent_less\nthe cat,the dog\na cat,a dog\n")
    tasks = f"sst2={tmp_path / 'sst2.txt'},crows_pairs={tmp_path / 'crows.csv'}"
    sst2, crows = map(json.loads, evaluated(capsys, run, "--tasks", tasks, "--json").splitlines())
    assert (sst2["task"], sst2["questions"], sst2["num_fewshot"]) == ("sst2", 2, 0)
    assert sst2["acc"] in (0.0, 0.5, 1.0) and crows["likelihood_diff"] > 0
    first, second = evaluated(capsys, run, "--tasks", tasks).splitlines()
    assert first.startswith("sst2: 2 questions, 0 examples, acc ") and " to " in second


def test_a_comma_in_the_name_of_a_file_that_is_there_parts_no_tasks(run, tmp_path, capsys):
    (tmp_path / "a, b.txt").write_text("1 the cat\n")
    (tmp_path / "c.txt").write_text("1 the cat\n0 the dog\n")
    tasks = f"sst2={tmp_path / 'a, b.txt'},sst2={tmp_path / 'c.txt'}"
    rows = map(json.loads, evaluated(capsys, run, "--tasks", tasks, "--json").splitlines())
    assert [row["questions"] for row in rows] == [1, 2]
    both = f"sst2={tmp_path / 'c.txt'}+{tmp_path / 'a, b.txt'},hellaswag,copa={tmp_path / 'none, there.txt'}"
    assert named_tasks(both) == [both.split(",h")[0], "hellaswag", f"copa={tmp_path / 'none'}", "there.txt"]
    assert named_tasks("sst2=a.txt, rte=b.jsonl,") == ["sst2=a.txt", "rte=b.jsonl"]


def test_the_key_of_the_text_is_for_files_that_have_keys(run, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"said": TEXT}) + "\n")
    (tmp_path / "a.txt").write_text(TEXT)
    row = json.loads(evaluated(capsys, run, str(tmp_path / "a.jsonl"), "--text-key", "said", "--json"))
    assert row == {
        **json.loads(evaluated(capsys, run, str(tmp_path / "a.txt"), "--json")),
        "data": row["data"],
    }
    key = ("--text-key", "said")
    assert "a.txt holds text itself; leave it out" in fails(capsys, run, str(tmp_path / "a.txt"), *key)
    assert "--text-key said is for text in JSON lines" in fails(capsys, run, *key)
    assert "leave --stride, --wikitext, --by-document and --text-key out" in fails(
        capsys, run, "--tasks", f"sst2={bad(tmp_path)}", *key
    )


def test_what_cannot_be_done_is_one_line(run, tmp_path, capsys):
    assert "does not exist" in fails(capsys, run, str(tmp_path / "nowhere.txt"))
    (tmp_path / "there.txt").write_text(TEXT)
    assert "does not exist" in fails(capsys, run, str(tmp_path / "there.txt"), str(tmp_path / "nowhere.txt"))
    assert "does not exist" in fails(capsys, str(tmp_path / "no_run"))
    other = fails(capsys, run, str(tmp_path / "there.txt"), "train.steps=3")
    assert "train.steps=3: expected DATA, or a key of the mesh to run on, such as mesh.cpu_devices=8" in other
    assert "expected auto, float32 or bfloat16" in fails(capsys, run, "--dtype", "float8")
    assert "expected 1 to the model's context" in fails(capsys, run, "--stride", "0")
    assert "--limit is for tasks; name some with --tasks" in fails(capsys, run, "--limit", "1")
    assert "--tasks have texts of their own" in fails(capsys, run, "a.txt", "--tasks", "sst2=a.txt")
    assert "--include-path is for" in fails(capsys, run, "--tasks", "sst2=a.txt", "--include-path", "tasks")
    assert "is called sst3; did you mean sst2" in fails(capsys, "nowhere", "--tasks", "sst3=a.txt")
    assert "a.txt:1: " in fails(capsys, run, "--tasks", f"sst2={bad(tmp_path)}")
