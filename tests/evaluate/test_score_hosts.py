"""Two processes that score, evaluate and train with tasks get together what one gets, and one says it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import run_hosts, tiny

from neojax.cli import main
from neojax.data.tokenizer import train
from neojax.evaluate.score import score
from neojax.models import Transformer
from neojax.training.metrics import read_metrics

HOST = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("localhost:" + sys.argv[2], 2, int(sys.argv[1]))
sys.path.insert(0, sys.argv[3])
from helpers import layout_of, tiny
from neojax.evaluate.score import score
from neojax.models import Transformer

layout = layout_of("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
model = Transformer(tiny(n_layer=2), layout).init(0)
found = score(model, json.loads(sys.argv[4]), json.loads(sys.argv[5]))
print(json.dumps([[each.logprobs.tolist(), each.is_greedy.tolist()] for each in found]))
"""


def test_two_processes_score_as_one():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 61, n).tolist() for n in (3, 24, 1, 1, 60, 9)]
    contexts = [[5, 6], [7], [1, 2, 3], [1, 2, 3], [4], [1, 2]]
    wanted = score(Transformer(tiny(n_layer=2)).init(0), texts, contexts)
    for host in run_hosts(HOST, 2, Path(__file__).parents[1], texts, contexts, timeout=240):
        for (logprobs, greedy), each in zip(host, wanted, strict=True):
            np.testing.assert_allclose(logprobs, each.logprobs, atol=1e-5)
            assert greedy == each.is_greedy.tolist()


COMMANDS = """
import contextlib, io, json, os, sys
os.environ |= {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:" + sys.argv[2], "JAX_NUM_PROCESSES": "2"}
os.environ |= {"JAX_PROCESS_ID": sys.argv[1], "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
from neojax.cli import main
said = []
for command in json.loads(sys.argv[3]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*command, "mesh.cpu_devices=2"]) == 0, command
    said.append(out.getvalue())
print(json.dumps(said))
"""
WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "a", "dog", "lay", "by", "the", "log", "in", "rain"]
TASK = """
task: pets
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
{more}
"""
CHOICE = """doc_to_choice: "{{[a, b]}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
SAID = """doc_to_target: a
generation_kwargs: {until: [the], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Texts, rows of tasks, and runs that are asked them and are trained to them."""
    draw = random.Random(0)

    def text(most):
        return " ".join(draw.choices(WORDS, k=draw.randint(3, most)))

    tokenizer = train([" ".join(WORDS)] * 3, 290)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    texts = lines(tmp_path / "text.jsonl", [{"text": text(60)} for _ in range(21)])
    labelled = [{"sentence": text(9), "label": i % 2} for i in range(13)]
    rows = {
        "sst2": lines(tmp_path / "sst2.jsonl", labelled),
        "lambada": lines(tmp_path / "lambada.jsonl", [{"text": text(20)} for _ in range(11)]),
    }
    pets = lines(
        tmp_path / "pets.jsonl",
        [{"q": text(8), "a": " cat sat", "b": " dog sat on", "label": i % 2} for i in range(5)],
    )
    tasks = (("pets", "multiple_choice", CHOICE), ("said", "generate_until", SAID))
    for name, kind, more in tasks:
        task = TASK.format(rows=pets, kind=kind, more=more).replace("task: pets", f"task: {name}")
        (tmp_path / f"{name}.yaml").write_text(task)
    prepare = ["prepare", texts, "--out", str(tmp_path / "data"), "--validation", "0.3"]
    assert main([*prepare, "--tokenizer", str(tmp_path / "tokenizer.json")]) == 0
    model = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_ctx": 32, "window_size": 9}
    mesh = {"shape": "data:-1", "layout": "batch:data", "param_layout": "embd:data"}
    keys = {
        "batch_size": 8,
        "steps": 2,
        "warmup_steps": 1,
        "eval_every": 2,
        "log_every": 1,
        "tensorboard": False,
    }
    data = str(tmp_path / "data")
    asked = [f"{name}={file}" for name, file in rows.items()]
    configs = {
        "asked": {"data": {"train": data, "validation": data}, "train": {**keys, "eval_tasks": asked}},
        "taught": {
            "data": {
                "task": "sst2", "train": rows["sst2"], "validation": rows["sst2"],
                "tokenizer": str(tmp_path / "tokenizer.json"),
            },
            "train": keys,
        },
    }  # fmt: skip
    for name, config in configs.items():
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({"model": model, "mesh": mesh, **config}))
    return tmp_path


def near(found, wanted):
    """Whether two rows of results have the same numbers, up to rounding."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, float | dict):
            assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_commands_that_two_processes_run_say_once_what_one_says(folder, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))

    def commands(run):
        asked, taught = str(run / "asked"), str(run / "taught")
        local = ",".join(f"{name}={folder / name}.jsonl" for name in ("sst2", "lambada"))
        include = ["--include-path", str(folder), "--json"]
        return [
            ["train", str(folder / "asked.yml"), f"train.run_dir={asked}"],
            ["train", str(folder / "taught.yml"), f"train.run_dir={taught}"],
            ["eval", asked, str(folder / "text.jsonl"), "--json"],
            ["eval", asked, "--tasks", f"{local},pets,said", *include],
            ["predict", taught, str(folder / "sst2.jsonl"), "--json"],
        ]

    many, other = run_hosts(COMMANDS, 2, json.dumps(commands(folder / "two")), timeout=900)
    assert other == [""] * 5
    capsys.readouterr()
    for number, command in enumerate(commands(folder / "one")):
        assert main([*command, "mesh.cpu_devices=8"] if number > 1 else command) == 0
        out = capsys.readouterr().out
        if number > 1:
            own, wanted = ([json.loads(line) for line in text.splitlines()] for text in (many[number], out))
            for a, b in zip(own, wanted, strict=True):
                if "results" in b:
                    for name, results in b["results"].items():
                        near(a["results"][name], results)
                else:
                    near(a, b)
    for name in ("asked", "taught"):
        ours, wanted = (list(read_metrics(folder / of / name)) for of in ("two", "one"))
        of_time = ("tokens_per_second", "input_seconds", "model_flops_per_second")
        for a, b in zip(ours, wanted, strict=True):
            near(*({k: v for k, v in row.items() if k not in of_time} for row in (a, b)))
        assert any("lambada_perplexity" in row or "validation_accuracy" in row for row in wanted)
