"""A run of a model with experts: what it reports, resuming, inspecting, sampling and exporting it."""

import re

import numpy as np
import pytest

import neojax
from neojax.cli import main
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

EXPERTS = (
    *("model.experts.number=4", "model.experts.layers=[1]", "model.experts.width=8"),
    *("model.experts.second=random", "model.experts.jitter=0.1"),
    "mesh.layout=batch:data,heads:model,experts:data,expert_mlp:model",
    *("mesh.param_layout=''", "train.checkpoint_every=2", "train.eval_every=2", "train.warmup_steps=1"),
)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """The directory of a run of 4 steps."""
    folder = tmp_path_factory.mktemp("runs") / "experts"
    train(settings(folder, *EXPERTS, "train.steps=4"))
    return folder


def test_a_resumed_run_goes_on_as_if_it_had_not_been_stopped(run, settings, tmp_path):
    for steps in (2, 4):
        train(settings(tmp_path / "run", *EXPERTS, f"train.steps={steps}"))
    names = ("loss", "grad_norm", "expert_load", "expert_dropped", "router_entropy", "validation_loss")
    rows, again = ([[row.get(n) for n in names] for row in read_metrics(f)] for f in (run, tmp_path / "run"))
    assert rows == again


def test_the_load_of_each_layer_with_experts_is_logged(run):
    for row in read_metrics(run):
        assert np.shape(row["expert_load"]) == (1, 4) and 1 <= np.sum(row["expert_load"]) <= 2
        assert 0 <= row["expert_dropped"] < 1 and row["balance_loss"] > 0.5 and row["router_z_loss"] > 0
    assert row["validation_expert_dropped"] == 0 and np.sum(row["validation_expert_load"]) == pytest.approx(2)


def test_it_is_inspected_sampled_and_not_exported(run, tmp_path, capsys):
    main(["inspect", str(run)])
    text = capsys.readouterr().out
    found = re.search(r"([\d,]+) parameters, ([\d,]+) of them used by a token", text)
    total, used = (int(n.replace(",", "")) for n in found.groups())
    assert total - used == (4 - 2) * 2 * 16 * 8
    model = neojax.load(run)
    assert len(neojax.generate(model, [1, 2, 3], max_new_tokens=4, temperature=0, eos=())) == 4
    assert main(["convert", str(run), str(tmp_path / "hf")]) == 2
    assert "model.experts.number=4 cannot be exported" in capsys.readouterr().err
