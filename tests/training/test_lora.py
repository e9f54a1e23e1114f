"""A run that trains low-rank additions leaves the base as it was, keeps it once, and goes on bit for bit."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import random_tokens

import neojax
from neojax.cli import main
from neojax.config import LoraConfig
from neojax.convert import hf
from neojax.errors import NeojaxError
from neojax.layout.named import Quantized
from neojax.loading import load_params, load_trained
from neojax.models import Transformer
from neojax.models.merging import merged
from neojax.runs.checkpoint import Checkpoints
from neojax.runs.orbax import shapes
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

LORA = (
    "train.lora.rank=2",
    "train.lora.targets=[attn.query, mlp.down]",
    "train.lora.dropout=0.2",
    "train.lora.base=int8",
    "train.lora.whole=[norm_f.*]",
)
ADDED = {
    f"blocks.{i}.{matrix}.{part}"
    for i in (0, 1)
    for matrix in ("attn.query", "mlp.down")
    for part in ("lora_a", "lora_b")
}
TRAINED = ADDED | {"norm_f.scale", "norm_f.bias"}


@pytest.fixture(scope="module")
def tuned(settings, whole_run, tmp_path_factory):
    """Makes the settings of a run that adapts the weights of another, by folder and steps; and the folder of
    one whose first weights are gone."""
    folder: Path = tmp_path_factory.mktemp("runs")
    shutil.copytree(whole_run, folder / "first")

    def tuning(run, steps=4, *more):
        every = ("train.checkpoint_every=2", "train.eval_every=2", "train.keep=1")
        first = f"train.init_from={folder / 'first'}"
        return settings(run, first, f"train.steps={steps}", *every, *LORA, *more)

    train(tuning(folder / "tuned"))
    train(tuning(folder / "stopped", 2))
    before = load_trained(folder / "first").params()
    shutil.rmtree(folder / "first")
    return tuning, folder / "tuned", folder / "stopped", before


@pytest.mark.parametrize("kept", ["int8", "bfloat16"])
def test_a_base_from_files_is_narrowed_as_it_is_read(kept, whole_run, tmp_path):
    plain = load_trained(whole_run)
    hf.save(plain, tmp_path / "hf")
    lora = LoraConfig(rank=2, base=kept, whole=("norm_f.*",))
    model = Transformer(plain.config, plain.layout, lora=lora)
    params = load_params(tmp_path / "hf", model)  # no matrix that stays as it is ever lies there in float32
    matrices = [name for name in params if model.adapters.kept(name, model.dims()[name]) != "float32"]
    assert "wte" in matrices and len(matrices) > 6
    for name in matrices:
        assert (
            params[name].values if isinstance(params[name], Quantized) else params[name]
        ).dtype != np.float32
    wide = model.adapted(dict(plain.params())).params()
    for name, value in model.adapted(params).params().items():
        for ours, theirs in zip(jax.tree.leaves(value), jax.tree.leaves(wide[name]), strict=True):
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def numbers(run):
    kept = ("loss", "grad_norm", "learning_rate", "validation_loss")
    return [[row.get(key) for key in kept] for row in read_metrics(run)]


def test_only_what_is_trained_is_in_a_checkpoint_and_the_base_is_there_once(tuned):
    run, before = tuned[1], tuned[3]
    saved = shapes(run / "checkpoints" / "4" / "params")
    assert saved.keys() == TRAINED
    moments = shapes(run / "checkpoints" / "4" / "opt_state")
    assert {path.split("/")[-1] for path in moments if "/mu/" in path} == TRAINED
    after = load_trained(run).params()
    assert after.keys() == before.keys() | TRAINED
    for name in before.keys() - TRAINED:
        base = after[name]
        if hasattr(base, "scale"):
            half = np.asarray(base.scale) / 2
            difference = np.abs(np.asarray(base.values * base.scale) - np.asarray(before[name]))
            assert (difference <= half * 1.001).all(), name
        else:
            np.testing.assert_array_equal(base, before[name].astype(base.dtype), err_msg=name)
    assert np.abs(np.asarray(after["blocks.0.attn.query.lora_b"])).max() > 1e-3


def test_a_stopped_run_goes_on_bit_for_bit_without_the_weights_that_it_began_from(tuned):
    tuning, whole, stopped, _ = tuned
    train(tuning(stopped))
    assert numbers(stopped) == numbers(whole)
    a, b = (load_trained(run).params() for run in (whole, stopped))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_it_is_sampled_converted_and_trained_on_from_its_folder_alone(tuned, settings, tmp_path, capsys):
    run, tokens = tuned[1], random_tokens(2, 12)
    logits = np.asarray(merged(load_trained(run))(tokens))
    np.testing.assert_allclose(np.asarray(neojax.load(run)(tokens)), logits, atol=1e-5)
    assert main(["convert", str(run), str(tmp_path / "peft")]) == 0
    settings_written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (settings_written["r"], settings_written["modules_to_save"]) == (2, ["transformer.ln_f"])
    assert main(["convert", str(run), str(tmp_path / "hf"), "--merge"]) == 0
    np.testing.assert_allclose(np.asarray(neojax.load(tmp_path / "hf")(tokens)), logits, atol=1e-5)
    out = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert out["model_type"] == "gpt_neo"
    train(settings(tmp_path / "next", f"train.init_from={run}", "train.steps=1", "train.learning_rate=0"))
    np.testing.assert_allclose(np.asarray(neojax.load(tmp_path / "next")(tokens)), logits, atol=1e-5)
    assert main(["inspect", str(run), "--verify"]) == 0
    assert "base 0: whole" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["rank=4", "alpha=32.0", "base=bfloat16", "targets=[attn.query]"])
def test_other_additions_are_refused_with_the_way_on(change, tuned):
    with pytest.raises(NeojaxError) as error:
        train(tuned[0](tuned[1], 6, f"train.lora.{change}"))
    text = str(error.value)
    assert f"train.lora.{change.split('=')[0]} (" in text and f"train.init_from={tuned[1]}" in text
    with Checkpoints(tuned[1]) as checkpoints:
        assert checkpoints.latest() == 4


def test_what_it_cannot_be_without_is_told(tuned, settings, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned[1], run)
    shutil.rmtree(run / "base")
    for use in (lambda: neojax.load(run), lambda: train(tuned[0](run, 6))):
        with pytest.raises(NeojaxError, match=r"run/base is gone: it holds the frozen weights of this run"):
            use()
    with pytest.raises(NeojaxError, match=r"train.lora.rank=2 adapts weights that are there: name them"):
        train(settings(tmp_path / "none", "train.lora.rank=2"))
    with pytest.raises(NeojaxError, match=r"train.lora.rank=2 freezes all .* leave train.frozen=\['vocab'\]"):
        settings(tmp_path / "both", "train.lora.rank=2", "train.frozen=vocab")
    with pytest.raises(NeojaxError, match=r"unknown key train.lora.rnk; did you mean train.lora.rank"):
        settings(tmp_path / "misspelt", "train.lora.rnk=2")
