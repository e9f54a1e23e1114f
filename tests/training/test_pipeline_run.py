"""A run through a pipeline goes on with another number of stages, or with none, as if nothing had changed."""

import pytest

import neojax
from neojax.cli import main
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

COMMON = (
    *("model.n_layer=4", "model.attention_types=[global]", "train.batch_size=16", "train.microbatch=4"),
    *(
        "train.checkpoint_every=1",
        "train.eval_every=2",
        "train.warmup_steps=1",
        "mesh.param_layout=embd:data",
    ),
)


def stages(count, rounds=1):
    """The overrides of a run with so many stages."""
    shape = f"mesh.shape=stage:{count},data:2,model:{4 // count}"
    layout = "mesh.layout=batch:data,layers:stage,heads:model,mlp:model,vocab:stage+model"
    return shape, layout, f"train.pipeline_rounds={rounds}", "train.remat=full"


@pytest.fixture(scope="module")
def plain(settings, tmp_path_factory):
    """The directory of a run of 4 steps without a pipeline."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    train(settings(folder, *COMMON, "train.steps=4"))
    return folder


def test_stages_come_and_go_without_a_trace_in_the_losses(plain, settings, tmp_path, capsys):
    folder = tmp_path / "run"
    for steps, how in enumerate((("mesh.shape=data:4,model:2",), stages(4), stages(2, 2), ()), 1):
        train(settings(folder, *COMMON, *how, f"train.steps={steps}"))
    told = capsys.readouterr().out
    assert "pipeline of 4 stages, 4 microbatches: a stage waits 42.9% of the time" in told
    assert "pipeline of 2 stages, 4 microbatches, 2 rounds: a stage waits 11.1% of the time" in told
    expected, found = ({row["step"]: row for row in read_metrics(f)} for f in (plain, folder))
    for step, row in expected.items():
        for name in {"loss", "grad_norm", "validation_loss"} & row.keys():
            assert found[step][name] == pytest.approx(row[name], rel=2e-6), (step, name)


def test_what_a_pipeline_trained_is_inspected_evaluated_and_sampled(plain, settings, tmp_path, capsys):
    folder = tmp_path / "run"
    train(settings(folder, *COMMON, *stages(2), "train.steps=4"))
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "layers:stage" in told and "pipeline of 2 stages" in told
    texts = [
        neojax.generate(neojax.load(f), [1, 2, 3], max_new_tokens=8, temperature=0, eos=())
        for f in (plain, folder)
    ]
    assert texts[0] == texts[1]
    on_stages = neojax.load(folder, mesh=settings(folder, *stages(2)).mesh)
    assert neojax.generate(on_stages, [1, 2, 3], max_new_tokens=8, temperature=0, eos=()) == texts[0]
