"""`neojax plan --tokens`: what a run costs, from the estimate of its step."""

import json

import pytest
from helpers import failure

from neojax.cli import main
from neojax.commands import plan as command
from neojax.config import load
from neojax.layout.chips import FRACTIONS
from neojax.plan.cost import print_sweep
from neojax.plan.estimate import analyse
from neojax.plan.report import gb, print_report

TINY = """
model: {n_layer: 2, n_embd: 64, n_ctx: 128, n_vocab: 256, attention: {heads: 2, window: 32}}
mesh: {shape: "data:-1", layout: "batch:data", param_layout: "embd:data"}
train: {batch_size: 64, steps: 1000}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "tiny.yml"
    path.write_text(TINY)
    return str(path)


def plan(capsys, *words):
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_a_run_costs_its_steps(config, capsys):
    words = ("--topology", "h100:8", "--tokens", "1e9", "--price-per-chip-hour", "3", "--json")
    found = json.loads(plan(capsys, config, *words))
    assert found["steps"] == -(-1e9 // (64 * 128))
    assert found["days"] * 86400 == pytest.approx(found["steps"] * found["seconds"])
    assert found["chip_hours"] == pytest.approx(24 * 8 * found["days"])
    assert found["dollars"] == pytest.approx(3 * found["chip_hours"])
    parameters = 2 * (4 * 64 * 64 + 2 * 64 * 256) + 256 * 64 + 128 * 64
    assert found["checkpoint"] == pytest.approx(3 * 4 * parameters, rel=0.02)
    assert found["low"] < found["seconds"] < found["high"]


def test_gpus_are_planned_by_the_model_alone_which_is_said(config, capsys, monkeypatch):
    for name in FRACTIONS:
        monkeypatch.delenv(name, raising=False)
    text = plan(capsys, config, "--topology", "h100:8")
    assert "by the analytic model alone" in text
    assert "0.75 of the 84.9 GB that H100 reports" in text and "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92" in text
    assert "the run, 1,000 steps" in text
    assert "constants of the model, and their spread: products h100" in text


def test_a_step_on_gpus_is_told_as_one_that_is_compiled(config, capsys):
    found = json.loads(plan(capsys, config, "--topology", "h100:16", "--json"))
    memory = found["memory"]
    kinds = ("parameters", "optimizer", "batch", "gradients", "activations_kept", "temporaries")
    assert sum(memory[kind] for kind in kinds) + memory["unused"] == memory["needed"]
    parameters = 4 * (2 * (4 * 64 * 64 + 2 * 64 * 256) + 256 * 64 + 128 * 64) / 16
    assert memory["parameters"] == pytest.approx(parameters, rel=0.1)
    assert memory["optimizer"] == pytest.approx(2 * parameters, rel=0.1)
    assert memory["most_gradients"] >= memory["parameters"]
    assert len(memory["largest"]) == 5 and memory["largest"][0]["bytes"] >= memory["largest"][4]["bytes"]
    moved = {row["kind"]: row for row in found["collectives"] if row["types"] == "bfloat16"}
    assert moved["all-gather"]["axes"] == "data" and moved["all-gather"]["crosses"]
    tokens = 64 * 128
    assert [(host["devices"], host["rows"]) for host in found["hosts"]] == [(8, "0-31"), (8, "32-63")]
    assert sum(host["tokens_per_step"] for host in found["hosts"]) == tokens == found["tokens_per_step"]
    again = json.loads(plan(capsys, config, "--topology", "h100:16", "train.remat=full", "--json"))
    assert again["model_flops_per_device"] == found["model_flops_per_device"]
    assert again["executed_flops_per_device"] > 1.2 * found["executed_flops_per_device"]
    text = plan(capsys, config, "--topology", "h100:16")
    rate = tokens / 2 / found["estimate"]["seconds"]
    assert f"its loader must give {rate:,.0f} tokens a second" in text
    assert f"recomputed ones too: {found['executed_flops_per_device']:.3e}" in text


def test_a_step_that_does_not_fit_on_gpus_is_told_what_helps(config, capsys):
    words = ["train.batch_size=1048576", "train.remat=none", "mesh.param_layout=", "model.n_layer=8"]
    found = json.loads(plan(capsys, config, "--topology", "h100:8", *words, "--tokens", "1e9", "--json"))
    assert not found["fits"] and found["helps"]["needed_before"] == found["memory"]["needed"]
    assert found["tokens"] >= 1e9
    changes = found["helps"]["changes"]
    helps = {one["change"]: one for one in changes}
    assert {"train.remat=full", "--topology h100:16", 'mesh.param_layout="embd:data"'} <= set(helps)
    again = analyse(load(config, [*words, "train.remat=full"]), "h100:8")
    assert helps["train.remat=full"]["needed"] == again.work.memory.total
    assert helps["train.remat=full"]["seconds"] == again.estimate.seconds
    fitting = [one["seconds"] for one in changes if one["fits"]]
    assert fitting == sorted(fitting) and all(one["fits"] for one in changes[: len(fitting)])
    print_report(found)
    text = capsys.readouterr().out
    much = found["memory"]["needed"] - found["memory"]["available"]
    assert f"{gb(much)} too much" in text and "what helps, by the analytic model" in text


def test_machines_stand_in_one_table_and_picture_with_what_hinders_the_others(config, capsys, tmp_path):
    picture = tmp_path / "costs.svg"
    words = "--tokens", "1e9", "--topology", "v5e:2x2,h100:8,v5e:16x16", "--picture", str(picture)
    text = plan(capsys, config, *words)
    drawn = picture.read_text()
    assert ">v5e<" in drawn and ">h100<" in drawn and ">tiny: what a run costs<" in drawn
    table, others = text.split("v5e:16x16: ")
    days = [float(line.split()[3]) for line in table.splitlines() if line.startswith(("v5e", "h100"))]
    assert len(days) == 2 and days == sorted(days)
    assert "does not divide its size 64" in others


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tokens", "1e9", "--topology", "v5e"], "expected a chip and a shape"),
        (["--tokens", "1e9", "--decode"], "leave one out"),
        (["--topology", "foo:4"], "no chip is called foo; known: v2,"),
        (["--topology", "2xh100:8"], "write h100:16"),
        (["--topology", "h100:8", "--weights", "int8"], "give --decode too"),
        (["--topology", "h100:8", "--out", "best.yml"], "are of --search"),
        (["--topology", "h100:8", "--picture", "no-folder/plan.svg"], "there is no folder no-folder"),
        (["--search", "--topology", "h100:8", "--out", "no-folder/best.yml"], "there is no folder no-folder"),
        (["--search", "--topology", "h100:8", "--out", "."], "is a folder; name a file"),
    ],
)
def test_what_cannot_be_is_one_line(config, capsys, words, said):
    assert main(["plan", config, *words]) == 2
    assert said in capsys.readouterr().err


def test_tokens_are_a_number(config, capsys):
    with pytest.raises(SystemExit):
        main(["plan", config, "--tokens", "many"])
    assert "invalid positive value: 'many'" in capsys.readouterr().err


def test_what_auto_says_is_not_in_the_object_of_a_plan(config, capsys, monkeypatch):
    monkeypatch.setattr(command, "planned", lambda config, *_: {"layout": config.mesh.layout})
    mesh = ["mesh.layout=auto", "mesh.shape=data:-1", "mesh.param_layout="]
    found = json.loads(plan(capsys, config, *mesh, "--json"))
    assert found["layout"].startswith("batch:")


@pytest.mark.parametrize("is_there", [False, True])
def test_libtpu_says_nothing_where_there_is_no_tpu(config, capsys, monkeypatch, is_there):
    said = []
    monkeypatch.setattr(command, "planned", lambda *_: {})
    monkeypatch.setattr(command, "has_tpu", lambda: is_there)
    monkeypatch.setattr(command, "hush", said.append)
    plan(capsys, config, "--json")
    assert len(said) == (not is_there)


def test_a_machine_of_several_on_which_nothing_fits_says_how_much_is_too_much(config, capsys):
    print_sweep([{"topology": "h100:8", "fits": False, "needed": 100e9, "room": 60e9}], load(config))
    assert "h100:8: does not fit, 100 GB a device, of 60 GB: 40 GB too much" in capsys.readouterr().out


def test_what_a_short_run_costs_is_not_nothing(config, capsys):
    machines = "h100:8,v5e:2x2"
    words = ("--tokens", "1e6", "--topology", machines)
    rows = json.loads(plan(capsys, config, *words, "--json"))
    text = plan(capsys, config, *words)
    assert all(f"{row['chip_hours']:.3g}" in text and f"{row['dollars']:.3g}" in text for row in rows)


def test_auto_tells_its_layout_of_gpus_too(config, capsys):
    auto = ("mesh.layout=auto", "mesh.shape=data:-1", "mesh.param_layout=", "--topology", "h100:2")
    assert "mesh.layout=auto: mesh data:2" in plan(capsys, config, *auto)
    assert main(["plan", config, *auto, "--decode", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["mesh"] == "data:2" and "mesh.layout=auto" in said.err


@pytest.mark.parametrize(
    "words, said",
    [
        (("--decode", "--price-per-chip-hour", "3"), "--price-per-chip-hour is of a run"),
        (("--search", "--price-per-chip-hour", "3"), "--price-per-chip-hour is of a run"),
        (("--search", "--finalists", "-1"), "--finalists"),
    ],
)
def test_options_that_would_do_nothing_are_errors(words, said, config, capsys):
    assert said in failure(capsys, "plan", config, "--topology", "h100:8", *words)
