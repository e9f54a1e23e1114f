"""A run directory, or one of its checkpoints, opens as a model; what is none says why."""

import json
import logging
import os
import shutil
import subprocess
import sys
from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_tokens, tiny, true_rows

import neojax
from neojax import config as configuration
from neojax.commands import convert as command
from neojax.config import Config, MeshConfig
from neojax.data import tokenizer as tokenizers
from neojax.data.prepare import prepare
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.models.inference import for_inference
from neojax.runs import integrity
from neojax.runs.checkpoint import Checkpoints
from neojax.runs.run_dir import meta

CONFIG = Config(model=tiny(n_layer=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints of steps 3 (seed 3) and 7 (seed 7)."""
    run = tmp_path_factory.mktemp("run")
    with Checkpoints(run, keep=2) as checkpoints:
        for step in (3, 7):
            checkpoints.save(
                step,
                {"params": params(step), "opt_state": {"count": jnp.zeros(())}},
                meta(CONFIG, None, None),
            )
            checkpoints.wait()
    (run / "config.yml").write_text(configuration.dump(CONFIG))
    return run


def params(seed):
    return Transformer(CONFIG.model).init(seed).params()


@pytest.mark.parametrize(
    "inside, seed", [("", 7), ("checkpoints", 7), ("checkpoints/7", 7), ("checkpoints/3", 3)]
)
def test_the_newest_checkpoint_or_the_one_named(run, inside, seed):
    model = neojax.load(run / inside)
    form = for_inference(Transformer(CONFIG.model).bind(params(seed))).params()
    assert model.params().keys() == form.keys()
    for name, value in form.items():
        np.testing.assert_array_equal(model.params()[name], value)
    assert model.config == CONFIG.model and model.tokenizer is None


def test_logits_on_a_mesh_are_those_of_one_device(run):
    tokens = random_tokens(2, 8)
    mesh = MeshConfig("data:2, model:2", "batch:data, vocab:model, mlp:model", "embd:data", cpu_devices=4)
    split = neojax.load(str(run), mesh=mesh)
    alone = neojax.load(run)
    np.testing.assert_allclose(split(tokens), alone(tokens), atol=1e-5)
    assert len(split.params()["wte"].sharding.device_set) == 4
    assert true_rows(split.params()).keys() == alone.params().keys()


def test_the_compute_type_can_be_chosen(run):
    assert neojax.load(run, dtype="bfloat16").compute.dtype == "bfloat16"
    with pytest.raises(NeojaxError, match="expected auto, float32"):
        neojax.load(run, dtype="float16")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"path": None}, "path is None; expected the folder of a run"),
        ({"path": 5}, "path is 5"),
        ({"path": b"run"}, "path is b'run'"),
        ({"mesh": "data:1"}, "mesh is 'data:1'; expected a neojax.config.MeshConfig"),
        ({"mesh": {"shape": "data:1"}}, "mesh is {'shape': 'data:1'}; expected a neojax.config.MeshConfig"),
        ({"mesh": MeshConfig(shape=5)}, "mesh.shape: expected a text, got 5"),
        ({"dtype": jnp.float32}, "dtype is .*; expected auto, float32 or bfloat16"),
        ({"weights": None}, "weights is None; expected auto, float32"),
    ],
)
def test_an_argument_of_another_type_is_one_line(run, arguments, words):
    with pytest.raises(NeojaxError, match=words) as error:
        neojax.load(**{"path": run, **arguments})
    assert "\n" not in str(error.value)
    with pytest.raises(NeojaxError, match=r"config is .*; expected a neojax.config.Config"):
        neojax.train(arguments)


def test_weights_can_be_kept_narrow(run):
    model = neojax.load(run, weights="int8")
    assert model.params()["blocks.0.mlp.up"].values.dtype == "int8"
    assert neojax.load(run, weights="bfloat16").params()["wte"].dtype == "bfloat16"
    with pytest.raises(NeojaxError, match="'int3'; expected auto, float32, bfloat16 or int8"):
        neojax.load(run, weights="int3")


@pytest.mark.parametrize(
    "inside, words",
    [("absent", "does not exist"), ("checkpoints/5", "step 5; it has: 3, 7"), ("empty", "neither")],
)
def test_what_is_no_model_says_why(run, inside, words):
    (run / "empty").mkdir(exist_ok=True)
    with pytest.raises(NeojaxError, match=words) as error:
        neojax.load(run / inside)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["a" * 300, "x/" + "a" * 300, "\0"])
def test_a_name_that_no_file_can_have_is_one_line(path):
    with pytest.raises(NeojaxError, match=r"cannot read|does not exist"):
        neojax.load(path)


def test_a_run_that_has_no_checkpoint_yet(tmp_path):
    (tmp_path / "config.yml").write_text(configuration.dump(CONFIG))
    with pytest.raises(NeojaxError, match="train it first"):
        neojax.load(tmp_path)


LOGGING = """
import logging, sys, absl.logging
def state():
    return [(l.name, l.level, l.handlers, l.propagate, l.filters) for l in
            [logging.root, *logging.root.manager.loggerDict.values()] if isinstance(l, logging.Logger)
            and (l.level, l.handlers, l.propagate) != (0, [], True)]
import jax
before = state()
import neojax
neojax.load(sys.argv[1])
assert state() == before, (before, state())
"""


def test_logging_is_left_as_it_was(run):
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, str(run)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_logging_is_quiet_until_the_last_checkpoints_are_closed(run):
    absl = logging.getLogger("absl")
    before = absl.level
    first, second = Checkpoints(run), Checkpoints(run)
    first.close()
    assert absl.level > logging.CRITICAL
    second.close()
    second.close()
    assert absl.level == before


@pytest.fixture(scope="module")
def own_end(tmp_path_factory):
    """A run, one step long, on data whose documents end with a token of their own, not the tokenizer's usual
    one."""
    folder = tmp_path_factory.mktemp("end")
    tokenizer = tokenizers.train(["to be or not to be"] * 5, 260)
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text.jsonl").write_text('{"text": "to be or not to be"}\n' * 9)
    prepare(
        [folder / "text.jsonl"], folder / "data", tokenizer=folder / "tokenizer.json", eod="<end>", workers=1
    )
    raw = {
        "model": {"n_layer": 1, "n_embd": 8, "n_head": 1, "n_ctx": 8, "n_vocab": 300, "attention_types": ["global"]},  # noqa: E501
        "mesh": {"shape": "data:1", "layout": "", "cpu_devices": 1},
        "data": {"train": str(folder / "data")},
        "train": {"run_dir": str(folder / "run"), "steps": 1, "batch_size": 1, "warmup_steps": 0, "tensorboard": False},  # noqa: E501
    }  # fmt: skip
    neojax.train(configuration.from_dict(raw))
    return folder / "run", tokenizer.token_to_id("<end>")


def test_the_end_of_document_token_of_the_data_travels_with_the_model(own_end, tmp_path):
    run, end = own_end
    convert = {"config": None, "force": False, "merge": False, "overrides": []}
    command.run(Namespace(source=str(run), dest=str(tmp_path / "hf"), **convert))
    command.run(Namespace(source=str(tmp_path / "hf"), dest=str(tmp_path / "back"), **convert))
    for path in (run, tmp_path / "hf", tmp_path / "back"):
        model = neojax.load(path)
        assert model.eos_token_id == end != tokenizers.usual_end(model.tokenizer)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_text())["eos_token_id"] == end
    words = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert words["eos_token"] == "<end>"


def test_a_checkpoint_without_an_end_of_document_token_has_the_usual_one_of_its_tokenizer(own_end, tmp_path):
    run = shutil.copytree(own_end[0], tmp_path / "old")
    (meta,) = run.glob("checkpoints/1/meta/metadata")
    before = json.loads(meta.read_text())
    del before["eos_token_id"]
    meta.write_text(json.dumps(before))
    folder = run / "checkpoints" / "1"
    sizes = {n: (folder / n).stat().st_size for n in integrity.names_in(folder) if n != "files.json"}
    (folder / "files.json").write_text(json.dumps(sizes))  # as it was then, without checksums
    assert neojax.load(run).eos_token_id == 0


def test_a_mesh_of_another_type_is_named():
    for mesh in (jax.sharding.Mesh(jax.devices()[:1], ("data",)), MeshConfig, memoryview(b"ab"), "data:1"):
        with pytest.raises(NeojaxError, match=r"^mesh is .*; expected a neojax.config.MeshConfig"):
            neojax.load("anywhere", mesh=mesh)
