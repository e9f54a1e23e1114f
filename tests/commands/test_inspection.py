"""`neojax inspect` gives the published parameter counts and the true layout."""

import json
import math
import re
from pathlib import Path

import pytest
from helpers import N_VOCAB, tiny

from neojax import config as configuration
from neojax.cli import main
from neojax.commands.inspect import print_model
from neojax.config import Config, LoraConfig, MeshConfig, TrainConfig
from neojax.errors import NeojaxError
from neojax.layout.mesh import abstract_layout
from neojax.runs import integrity

CONFIGS = Path(__file__).resolve().parents[2] / "meshconfigs"
PUBLISHED = {
    "125M": 125_198_592,
    "350M": 24 * (12 * 1024**2 + 10 * 1024) + (50257 + 2048) * 1024 + 2 * 1024,
    "1.3B": 1_315_575_808,
    "2.7B": 2_651_307_520,
}


def rows_of(text):
    """Parameter name -> the rest of its line."""
    lines = re.findall(r"^(\S+) +((?:layers|vocab|positions|embd) .*)$", text, re.MULTILINE)
    return dict(lines)


def laid_out(path):
    """The config at `path`, with eight devices where its mesh takes what is there."""
    shape = configuration.load(path).mesh.shape
    return configuration.load(path, [f'mesh.shape="{shape.replace("-1", "8")}"'])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name, capsys):
    config = laid_out(CONFIGS / f"{name}.yml")
    assert config.model.attention_layers[:2] == ("global", "local")
    assert (config.model.n_ctx, config.model.attention.window) == (2048, 256)
    print_model(config)
    assert f"{PUBLISHED[name]:,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_can_be_laid_out(path, capsys):
    print_model(laid_out(path))
    assert len(rows_of(capsys.readouterr().out)) >= 12


IN_FOLDERS = {
    "pythia/14M": 14_067_712,
    "pythia/70M": 70_426_624,
    "pythia/160M": 162_322_944,
    "pythia/410M": 405_334_016,
    "pythia/1B": 1_011_781_632,
    "pythia/1.4B": 1_414_647_808,
    "pythia/2.8B": 2_775_208_960,
    "pythia/6.9B": 6_857_302_016,
    "pythia/12B": 11_846_072_320,
    "neox/20B": 20_554_567_680,
    "gpt_j/6B": 6_050_882_784,
    "gpt3/6.7B": 6_658_011_136,
    "gpt3/13B": 12_852_771_840,
    "gpt3/175B": 174_600_720_384,
    "llama/TinyLlama-1.1B": 1_100_048_384,
    "llama/2-7B": 6_738_415_616,
    "llama/3-8B": 8_030_261_248,
}


def test_models_in_folders_have_the_published_number_of_parameters_and_fit_the_slice_they_name(capsys):
    """Facts: the README of Pythia, and GPT-NeoX's; the model cards of the others."""
    found = [path.relative_to(CONFIGS) for path in CONFIGS.glob("*/*.yml")]
    found = [path for path in found if path.parent.name not in ("bert", "albert")]  # see below
    assert {str(path.with_suffix("")) for path in found} == IN_FOLDERS.keys()
    for name, count in IN_FOLDERS.items():
        path = CONFIGS / f"{name}.yml"
        size = re.search(r"^# slice: v5[ep]:([\dx]+)$", path.read_text(), re.MULTILINE)[1]
        chips = math.prod(map(int, size.split("x")))
        config = configuration.load(path, [f"mesh.shape=data:{chips}"])
        print_model(config, abstract_layout(config.mesh))  # raises where the layout does not divide
        assert f"{count:,} parameters" in capsys.readouterr().out
        train = config.train
        assert f": {count:,} parameters" in path.read_text()
        assert train.batch_size % chips == (train.microbatch or train.batch_size) % chips == 0


ENCODERS = {
    "bert/tiny": 4_433_468,
    "bert/mini": 11_267_900,
    "bert/small": 29_058_876,
    "bert/medium": 41_668_412,
    "bert/base": 110_106_428,
    "bert/large": 336_226_108,
    "albert/base": 11_813_810,
    "albert/large": 17_847_474,
    "albert/xlarge": 59_021_490,
    "albert/xxlarge": 223_158_450,
}


def test_encoders_have_the_parameters_of_transformers_and_can_be_laid_out(capsys):
    """With the heads of pre-training, as counted from the tensors of `BertForPreTraining` and
    `AlbertForPreTraining`."""
    found = [
        path.relative_to(CONFIGS) for kind in ("bert", "albert") for path in CONFIGS.glob(f"{kind}/*.yml")
    ]
    assert {str(path.with_suffix("")) for path in found} == ENCODERS.keys()
    for name, count in ENCODERS.items():
        path = CONFIGS / f"{name}.yml"
        config = configuration.load(path, ["mesh.shape=data:8"])
        print_model(config, abstract_layout(config.mesh))  # raises where the layout does not divide
        assert f"{count:,} parameters" in capsys.readouterr().out
        assert f": {count:,} parameters" in path.read_text()
        assert (config.train.microbatch or config.train.batch_size) % 8 == 0
        assert config.data.pairs == ("nsp" if name.startswith("bert") else "sop")


def test_a_hugging_face_directory_is_shown_without_its_weights(tmp_path, capsys):
    keys = {"model_type": "gpt_neox", "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps({**keys, "intermediate_size": 512, "vocab_size": 50304}))
    assert main(["inspect", str(tmp_path), "mesh.shape=data:1", "mesh.layout="]) == 0
    assert "14,067,712 parameters" in capsys.readouterr().out  # Pythia 14M
    (tmp_path / "config.json").unlink()
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is neither a run directory (config.yml) nor a Hugging Face one" in capsys.readouterr().err


def test_layout_and_bytes_of_a_device(capsys):
    mesh = MeshConfig("data:4, model:2", "batch:data, heads:model, vocab:model", "embd:data")
    print_model(Config(model=tiny(), mesh=mesh))
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert len(rows) == 2 + 2 * 13 + 2
    assert rows["wte"].split() == [
        "vocab",
        "embd",
        "62",
        "32",
        "vocab:model",
        "vocab:model",
        "embd:data",
        "992",
    ]
    assert rows["blocks.1.attn.query"].endswith(f"{2 * 32 * 32 * 4 // 8:,}")
    assert rows["blocks.0.mlp.up"].split()[-3:] == ["whole", "embd:data", f"{2 * 32 * 128 * 4 // 4:,}"]
    assert "1 rows of vocabulary padding" in out and f"{N_VOCAB * 32:,}" not in rows["wte"]
    assert "8 device(s)" in out and "model FLOPs per trained token" in out
    held = sum(int(row.split()[-1].replace(",", "")) for row in rows.values())
    assert f"each stores {held:,} bytes of float32 parameters and {2 * held:,} of adamw state" in out
    print_model(Config(model=tiny(), mesh=mesh, train=TrainConfig(moment_dtype="bfloat16")))
    assert f"and {held * 6 // 4:,} of adamw state" in capsys.readouterr().out
    print_model(
        Config(model=tiny(), mesh=mesh, train=TrainConfig(optimizer="adafactor", adafactor_momentum=0.9))
    )
    assert f"and {held:,} of adafactor state" in capsys.readouterr().out


@pytest.mark.parametrize(
    "layout, changes, batch_size, told",
    [
        ("batch:x, sequence:y", {"n_ctx": 30}, 8, "sequence over y .* does not divide its size 30"),
        ("batch:x", {}, 7, "batch over x .* does not divide its size 7"),
        ("batch:x, sequence:y", {"experts.number": 4}, 8, r"give model\.experts\.group_size=6"),
        ("batch:x, vocab:x", {}, 8, "splits both batch and vocab over axis x"),
    ],
)
def test_what_training_would_refuse_is_an_error(layout, changes, batch_size, told):
    config = Config(tiny(**changes), MeshConfig("x:2, y:4", layout), train=TrainConfig(batch_size=batch_size))
    with pytest.raises(NeojaxError, match=told):
        print_model(config)


def test_frozen_parameters_are_counted_without_optimizer_state(capsys):
    mesh = MeshConfig("data:4, model:2", "batch:data, heads:model, vocab:model", "embd:data")
    print_model(Config(model=tiny(), mesh=mesh, train=TrainConfig(frozen=("vocab",))))
    out = capsys.readouterr().out
    held = {name: int(row.split()[-1].replace(",", "")) for name, row in rows_of(out).items()}
    trained = sum(held.values()) - held["wte"]
    assert (
        f"stores {sum(held.values()):,} bytes of float32 parameters and {2 * trained:,} of adamw state" in out
    )
    count, of_them = re.search(
        r"^([\d,]+) parameters, ([\d,]+) of them trained \(and 1 rows", out, re.MULTILINE
    ).groups()
    assert int(count.replace(",", "")) - int(of_them.replace(",", "")) == N_VOCAB * 32
    assert "as if all were trained" in out
    with pytest.raises(NeojaxError, match=r"train.frozen: 'vocabs' .* did you mean vocab\?"):
        print_model(Config(model=tiny(), mesh=mesh, train=TrainConfig(frozen=("vocabs",))))


def test_verify_reads_every_checkpoint_of_a_run(tmp_path, capsys):
    """Without JAX: only files are compared."""
    for step, content in ((5, b"five"), (10, b"ten"), (15, b"fifteen")):
        folder = tmp_path / "checkpoints" / str(step)
        (folder / "params").mkdir(parents=True)
        (folder / "params" / "data").write_bytes(content)
        integrity.seal(folder, {})
    assert main(["inspect", str(tmp_path), "--verify"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "checkpoint 10: whole, 1 files, 3 bytes"
    (tmp_path / "checkpoints" / "10" / "params" / "data").write_bytes(b"tem")
    (tmp_path / "checkpoints" / "15" / "files.json").write_text(json.dumps({"params/data": 7}))
    assert main(["inspect", str(tmp_path), "--verify"]) == 2
    out, err = capsys.readouterr()
    assert "checkpoint 5: whole" in out and "checkpoint 15: whole, 1 files, 7 bytes; sizes alone" in out
    assert "checkpoint 10: DAMAGED: params/data is not what was written" in out
    assert err == (
        f"error: 1 of 3 checkpoints of {tmp_path} are damaged: 10; restore them from a copy; the last whole "
        "one is 15\n"
    )
    assert main(["inspect", str(tmp_path / "nothing"), "--verify"]) == 2
    assert "has no checkpoints to verify" in capsys.readouterr().err


def test_low_rank_additions_are_shown_with_what_they_and_the_base_cost(capsys):
    mesh = MeshConfig("data:4, model:2", "batch:data, heads:model, vocab:model", "embd:data")
    lora = LoraConfig(rank=2, base="int8", whole=("norm_f.*",))
    print_model(Config(model=tiny(), mesh=mesh, train=TrainConfig(lora=lora)))
    out = capsys.readouterr().out
    held = {name: int(row.split()[-1].replace(",", "")) for name, row in rows_of(out).items()}
    assert held["blocks.1.attn.query"] == 2 * 32 * 32 // 8 + 4 * 2 * 32 // 2  # and a scale for every channel
    assert held["blocks.1.attn.query.lora_a"] == 4 * 2 * 32 * 2 // 4
    added = 4 * 2 * (2 * 32 + 2 * 32)
    assert f" parameters, {added + 64:,} of them trained (and 1 rows" in out
    trained = sum(n for name, n in held.items() if ".lora_" in name or name.startswith("norm_f"))
    whole = sum(held.values())
    assert (
        f"stores {whole:,} bytes of parameters, frozen matrices in int8 and {2 * trained:,} of adamw" in out
    )


def test_a_layout_to_be_chosen_is_shown_as_it_is_chosen(capsys):
    mesh = ["mesh.layout=auto", "mesh.shape=data:-1", "mesh.param_layout="]
    assert main(["inspect", str(CONFIGS / "demo.yml"), *mesh]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mesh.layout=auto: mesh ") and "bytes of float32 parameters" in said


def test_gpus_are_no_slice_to_lay_a_mesh_on(capsys):
    assert main(["inspect", str(CONFIGS / "demo.yml"), "--topology", "h100:8"]) == 2
    assert "h100:8: the mesh is laid on TPU slices" in capsys.readouterr().err
