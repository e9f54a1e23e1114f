"""GPT-NeoX's YAML configs: published files, merging, every part of the translation, and what is refused.

Facts: `megatron/neox_arguments`, `learning_rates.py` and `model/` of GPT-NeoX; the README of Pythia.
"""

import json
import shutil

import pytest

from neojax import cli
from neojax.config import value_at
from neojax.convert import configs, neox
from neojax.convert.neox_refusals import REFUSED
from neojax.errors import NeojaxError
from neojax.models import Transformer
from neojax.runs.run_dir import checkpoints_in
from neojax.training.loop import train
from neojax.training.metrics import read_metrics

SMALL = """
{
  # sizes
  "num-layers": 2, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 8, "max-position-embeddings": 8,
  "train_micro_batch_size_per_gpu": 4, "train_iters": 10, "tokenizer_type": "CharLevelTokenizer",
  "optimizer": {"type": "Adam", "params": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1.0e-8,}},
%s
}
"""


def write(folder, text="", name="a.yml"):
    path = folder / name
    path.write_text(SMALL % text)
    return path


def load(folder, text="", *overrides):
    return configs.load(write(folder, text), ["train.batch_size=8", *overrides])


def refused(folder, text, *overrides):
    with pytest.raises(NeojaxError) as caught:
        load(folder, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def published(shared_data):
    folder = shared_data / "gpt-neox-configs"
    found = [p for p in folder.glob("**/*.yml") if p.stem not in ("local_setup", "text_generation")]
    assert len(found) == 19
    return {str(p.relative_to(folder).with_suffix("")): p for p in found}


SIZES = {  # parameters, warm-up, learning rate, tensor parallel
    "pythia/14M": (14_067_712, 1430, 1e-3, 1), "pythia/31M": (30_494_720, 1430, 1e-3, 1),
    "pythia/70M": (70_426_624, 1430, 1e-3, 1), "pythia/160M": (162_322_944, 1430, 6e-4, 1),
    "pythia/410M": (405_334_016, 1430, 3e-4, 1), "pythia/1B": (1_011_781_632, 1430, 2.5e-4, 1),
    "pythia/1-4B": (1_414_647_808, 1430, 2e-4, 1), "pythia/2-8B": (2_775_208_960, 1430, 1.6e-4, 1),
    "pythia/6-9B": (6_857_302_016, 1430, 1.2e-4, 2), "pythia/12B": (11_846_072_320, 1430, 1.2e-4, 4),
    "20B": (20_554_567_680, 1500, 9.7e-5, 2),
}  # fmt: skip


def test_published_configs_have_the_published_size_and_recipe(published, capsys):
    for name, (count, warmup, rate, ranks) in SIZES.items():
        config = configs.load(published[name], asks=False)
        model = Transformer(config.model)
        shapes = [value.shape for value in model.params().values()]
        assert sum(map(prod, shapes)) == count, name
        assert (config.train.warmup_steps, config.train.learning_rate) == (warmup, rate)
        stages = ", stage:4" if name == "20B" else ""
        assert config.mesh.shape == f"data:-1{stages}" + (f", model:{ranks}" if ranks > 1 else "")
        assert config.model.mlp.activation == "gelu_new" and config.model.norm.order == "parallel"
        default = name in ("pythia/6-9B", "pythia/12B")
        init = config.model.init
        assert (init.method, init.output) == (("normal", "scaled") if default else ("small", "wang"))
        assert config.train.min_lr_ratio == 0.1 and config.train.schedule == "cosine"
        assert config.train.precision == "bfloat16"
    assert "pythia/160M.yml: ignored: " in capsys.readouterr().err


def prod(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def test_every_published_config_is_read_and_its_yaml_is_the_same_config(published, tmp_path):
    for name, path in published.items():
        config = configs.load(path, ["train.batch_size=1024"])
        if name in ("pythia/14M", "pythia/1B", "125M", "20B"):  # building models of all would take long
            again = tmp_path / "run.yml"
            again.write_text(neox.convert_text([path], ["train.batch_size=1024"]))
            assert configs.load(again) == config, name
        assert config.model.positions.kind == "rotary" and not config.model.embedding.tied
        if not name.startswith("pythia") and name != "20B":
            assert (config.model.mlp.activation, config.model.norm.order) == ("gelu", "pre")


def test_a_config_and_its_paths_train_and_keep_the_checkpoints_that_they_name(shared_data, tmp_path, capsys):
    """Pythia 14M beside local_setup.yml's keys, shrunk by overrides, from one pair that is cut."""
    source = shared_data / "gpt-neox-configs" / "pythia" / "14M.yml"
    text = source.read_text()
    model = tmp_path / "14M.yml"
    lines = [line for line in text.splitlines() if "data-paths" not in line and "okenizer" not in line]
    model.write_text(
        "\n".join(lines).replace('"wall_clock_breakdown": true,', '"wall_clock_breakdown": true')
    )
    for suffix in (".bin", ".idx"):
        pair = shared_data / "megatron" / f"meg-gpt2-openwebtext_text_document{suffix}"
        shutil.copy(pair, tmp_path / f"text{suffix}")
    names = ("vocab.json", "merges.txt")
    vocab, merges = (shared_data / "megatron" / f"gpt2-tiny-{name}" for name in names)
    paths = tmp_path / "paths.yml"
    paths.write_text(
        json.dumps({"data-path": str(tmp_path / "text"), "vocab_file": str(vocab), "merge_file": str(merges),
                    "save": str(tmp_path / "run"), "load": str(tmp_path / "run"), "log_dir": "logs"})
    )  # fmt: skip
    small = ["model.n_layer=2", "model.n_embd=32", "model.n_ctx=16", "train.batch_size=8", "train.steps=3"]
    small += [
        "train.precision=float32",
        "train.tensorboard=false",
        "train.eval_batches=1",
    ]
    config = configs.load([model, paths], small)
    assert config.model.n_vocab == 5120  # 5,000 ids, padded to a multiple of 128
    assert [source.split for source in (*config.data.train, *config.data.validation)] == ["969,30,1"] * 2
    train(config)
    assert (
        checkpoints_in(tmp_path / "run") == [0, 1, 2, 3] and (tmp_path / "run" / "tokenizer.json").is_file()
    )
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["step"] == 3 and rows[-1]["validation_loss"] > 8
    with pytest.raises(NeojaxError, match=r"key num-layers is given in .*14M\.yml and in .*b\.yml, as num_l"):
        other = tmp_path / "b.yml"
        other.write_text("num_layers: 3")
        configs.load([model, paths, other])


MEANT = [
    # a line of YAML, key of ours, value
    ("", "model.positions.kind", "learned"),
    ('"pos_emb": "rotary", "rotary-pct": 0.5', "model.positions.rotary_dims", 4),
    ('"pos_emb": "rotary", "rotary_emb_base": 500000', "model.positions.base", 5e5),
    ("", "model.embedding.tied", True),
    ("", "model.norm.order", "pre"),
    ('"gpt_j_residual": true', "model.norm.order", "parallel"),
    ('"gpt_j_residual": true, "gpt_j_tied": true', "model.norm.order", "parallel_shared"),
    ("", "model.mlp.activation", "gelu"),
    ('"bias-gelu-fusion": true', "model.mlp.activation", "gelu_new"),
    ('"activation": "swish", "bias_gelu_fusion": true', "model.mlp.activation", "silu"),
    ('"intermediate_size": 21', "model.mlp.width", 22),
    ('"expansion_factor": 5, "mlp_multiple_of": 32', "model.mlp.width", 128),
    ('"activation": "swiglu"', "model.mlp.gated", True),
    ('"activation": "swiglu"', "model.mlp.activation", "silu"),
    ('"activation": "swiglu", "intermediate_size": 32768, "mlp_multiple_of": 256', "model.mlp.width", 11008),
    ('"use_bias_in_mlp": false', "model.mlp.bias", False),
    ('"norm": "rmsnorm", "rms_norm_epsilon": 1.0e-5', "model.norm.kind", "rms"),
    ('"norm": "rmsnorm", "layernorm_epsilon": 0.1', "model.norm.epsilon", 1e-8),
    ('"num_kv_heads": 1', "model.attention.kv_heads", 1),
    ('"use_bias_in_attn_linear": false', "model.attention.out_bias", False),
    ('"use_bias_in_attn_linear": false', "model.attention.bias", False),
    ("", "model.n_vocab", 512),
    ('"model_parallel_size": 2, "make_vocab_size_divisible_by": 300', "model.n_vocab", 600),
    ('"attention_config": [[["local", "global"], "all"]]', "model.attention.types", ("local", "global")),
    ('"attention-config": [[["flash"], 1], [["local"], 1]]', "model.attention.types", ("global", "local")),
    ('"attention_config": ["local", "local"]', "model.attention.window", 16 * 3),
    (
        '"attention_config": ["local", "flash"], "sparsity_config": {"block": 2, "num_local_blocks": 3}',
        "model.attention.window",
        4,
    ),
    ('"sliding_window_width": 3', "model.attention.types", ("local",)),
    ('"sliding_window_width": 3', "model.attention.window", 4),
    ('"hidden_dropout": 0.1', "model.dropout", 0.1),
    ('"hidden_dropout": 0.1', "model.embedding.dropout", 0.1),
    ("", "model.init.output", "scaled"),
    ('"init_method": "small_init"', "model.init.method", "small"),
    ('"zero_optimization": {"stage": 1, "overlap_comm": True}', "mesh.param_layout", "embd:data"),
    ('"zero_optimization": {"stage": 0}', "mesh.param_layout", ""),
    ('"model-parallel-size": 2', "mesh.layout", "batch:data, heads:model, mlp:model, vocab:model"),
    ('"pipe-parallel-size": 2', "mesh.shape", "data:-1, stage:2"),
    ('"pipe-parallel-size": 2', "mesh.layout", "batch:data, layers:stage, vocab:stage"),
    (
        '"pipe-parallel-size": 2, "model-parallel-size": 2',
        "mesh.layout",
        "batch:data, layers:stage, heads:model, mlp:model, vocab:model+stage",
    ),
    ('"gradient_accumulation_steps": 2', "train.microbatch", 4),
    ('"gradient_accumulation_steps": 4', "train.microbatch", 0),  # 8 sequences are not 4 times 4
    ('"fp16": {"enabled": true}', "train.precision", "bfloat16"),
    ('"fp16": {"enabled": true, "type": "bfloat16"}', "train.precision", "bfloat16"),
    ("", "train.precision", "float32"),
    ('"checkpoint-activations": true', "train.remat", "full"),
    ('"min_lr": 0.002', "train.min_lr_ratio", 0.2),
    ("", "train.schedule", "linear_to_zero"),
    ('"lr-decay-style": "exponential"', "train.schedule", "exponential"),
    ('"lr_decay_iters": 200, "warmup": 0.05', "train.warmup_steps", 10),
    ('"lr_decay_iters": 200', "train.decay_steps", 200),
    ("", "train.weight_decay", 0.1),
    ('"weight-decay": "1e-2"', "train.weight_decay", 0.01),  # a text to YAML
    ("", "train.seed", 1234),
    ('"checkpoint-factor": 5', "train.checkpoint_every", 5),
    ('"checkpoint_factor": 2, "checkpoint_scale": "log"', "train.checkpoint_steps", (1, 2, 4, 8)),
    ('"extra-save-iters": [0, 3]', "train.checkpoint_steps", (0, 3)),
    ('"keep_last_n_checkpoints": 4', "train.keep", 4),
    ("", "train.keep", 11),  # all
    ('"eval-interval": 7, "eval_iters": 3, "gradient_accumulation_steps": 2', "train.eval_batches", 6),
    ('"log_interval": 3', "train.log_every", 3),
]


def test_each_key_says_what_it_does_there(tmp_path):
    for text, key, expected in MEANT:
        found = value_at(load(tmp_path, text), key)
        assert found == expected and type(found) is type(expected), (text, key)


def test_the_batch_is_that_of_all_gpus_and_asked_for_where_none_are_named(tmp_path):
    two = '"model_parallel_size": 2, "pipe_parallel_size": 2, "gradient_accumulation_steps": 3'
    path = write(tmp_path, f'{two}, "global_num_gpus": 16')
    train = configs.load(path).train
    assert (train.batch_size, train.microbatch) == (4 * 3 * 4, 4 * 4)
    assert configs.load(write(tmp_path), ["mesh.shape=data:2"]).train.batch_size == 8
    assert configs.load(write(tmp_path), ["mesh.cpu_devices=4"]).train.batch_size == 16
    assert configs.load(write(tmp_path, '"train_batch_size": 64')).train.batch_size == 64
    with pytest.raises(
        NeojaxError, match=r"a\.yml: train_micro_batch_size_per_gpu: 4 .* give train\.batch_s"
    ):
        configs.load(write(tmp_path))
    assert configs.load(write(tmp_path), asks=False).train.batch_size == 4
    fixed = write(tmp_path, '"train_batch_size": 30, "global_num_gpus": 2')
    with pytest.raises(NeojaxError, match="train_batch_size: 30 is not 4 x a whole number x 2"):
        configs.load(fixed)
    assert configs.load(fixed, ["mesh.shape=data:3"]).train.batch_size == 30


def test_weighted_paths_and_one_pair_that_is_cut(tmp_path):
    lists = '"train-data-paths": ["p", "q"], "train_data_weights": [1., 3.], "valid-data-paths": ["v"]'
    data = load(tmp_path, lists).data
    assert [(s.path, s.weight, s.split) for s in data.train] == [("p", 1.0, ""), ("q", 3.0, "")]
    assert [s.path for s in data.validation] == ["v"]
    data = load(tmp_path, '"data_path": "p", "split": "949, 50, 1"').data
    assert [(s.path, s.split) for s in (*data.train, *data.validation)] == [("p", "949,50,1")] * 2
    assert load(tmp_path, '"data_path": "p", "split": "1,0,0"').data.validation == ()
    data = load(tmp_path, '"data_path": "p", "split": "98765432, 0.5, 1"').data
    assert data.train[0].split == "98765432,0.5,1"  # every digit of a count of documents
    data = load(tmp_path, '"data_path": "p", "vocab_file": "v", "merge_file": "m"', "data.train=mine").data
    assert (data.train[0].path, data.train[0].split, data.validation, data.tokenizer) == ("mine", "", (), "")


BAD = [
    ('"num_layerz": 3', "unknown key num_layerz; did you mean num_layers?"),
    ('"fp16": true', "fp16: expected keys and values, got True"),
    ('"gpt-j-residual": "yes"', "gpt-j-residual: expected true or false, got 'yes'"),
    ('"hidden-dropout": "lots"', "hidden-dropout: expected a number, got 'lots'"),
    ('"seed": "12"', "seed: expected a whole number, at least 0, got '12'"),
    ('"layernorm_epsilon": "1.0e_8"', "layernorm_epsilon: expected a number, got '1.0e_8'"),
    ('"pos_emb": "alibi"', "pos_emb: positions of kind 'alibi' are not supported"),
    ('"pos_emb": "rotary", "rotary_pct": 0.4', "rotary_pct: 0.4 of heads of 8 features are 3"),
    ('"norm": "scalenorm"', "norm: scalenorm is not supported"),
    ('"activation": "gelo"', "activation: neojax has no 'gelo' here; did you mean gelu?"),
    ('"attention_config": [[["rwkv"], 2]]', "attention_config: attention of type 'rwkv' is not supported"),
    ('"attention_config": [[["mamba"], 2]]', "attention_config: attention of type 'mamba' is not"),
    ('"attention-config": [[["flash"], 3]]', "attention-config: expected types of all layers"),
    ('"attention-config": [[["flash"], 1]]', "attention-config: is of 1 layers, but num_layers=2"),
    ('"attention-config": "flash"', "attention-config: expected types of all layers"),
    ('"num_kv_heads": 3', "num_kv_heads: 3 does not divide num_attention_heads=2"),
    ('"moe_num_experts": 8', "moe_num_experts=8: mixtures of experts are not supported"),
    ('"init_method": "orthogonal"', "init_method: orthogonal is not supported"),
    ('"data_path": "p", "train_data_paths": ["q"]', "data_path: stands beside"),
    ('"train_data_paths": ["p"], "train_data_weights": [1, 2]', "train_data_weights: expected 1 numbers"),
    ('"data_path": "p", "split": "a"', "split: expected up to three shares"),
    ('"train_epochs": 2', "train_epochs=2: a run is measured in steps"),
    ('"data_impl": "cached"', "data_impl='cached': only token stores"),
    ('"min_lr": 1', "min_lr: 1 is more than the learning rate, 0.01"),
    ('"save": "runs"', "save: needs checkpoint_factor or extra_save_iters"),
    ('"pos-emb": "rotary", "pos_emb": "rotary"', "key pos-emb is given in"),
    ('"use_mup": true', "use_mup=True: muP is not supported"),
]


def test_what_cannot_be_had_is_one_line_with_key_and_file(tmp_path):
    for text, words in BAD:
        error = refused(tmp_path, text)
        assert words in error and "a.yml" in error, (text, error)
    assert "num_attention_heads=2" in refused(tmp_path, "", "model.n_embd=15")
    path = write(tmp_path)
    for given, words in (
        (("Adam", "Lion"), "optimizer.type: Lion"),
        (("lr", "weight_decay"), "weight_decay=0.01"),
    ):
        path.write_text((SMALL % "").replace(*given))
        with pytest.raises(NeojaxError, match=rf"a\.yml: .*{words}"):
            configs.load(path, ["train.batch_size=8"])


def test_what_is_on_is_refused_by_name_unless_its_value_asks_for_nothing(tmp_path):
    for key, (_, harmless) in REFUSED.items():
        if "." not in key:
            words = "null" if None in harmless else "false"
            assert load(tmp_path, f'"{key}": {words}')
            assert f"{key}='x'" in refused(tmp_path, f'"{key}": "x"')


def test_files_that_are_no_gpt_neox_configs_are_named(tmp_path, capsys):
    (tmp_path / "ours.yml").write_text("train: {steps: 300}")
    with pytest.raises(NeojaxError, match=r"ours\.yml is no GPT-NeoX config"):
        configs.load([write(tmp_path), tmp_path / "ours.yml"])
    assert configs.load(tmp_path / "ours.yml").train.steps == 300
    (tmp_path / "b.json").write_text(json.dumps({"num-layers": 2, "hidden-size": 8, "seq-length": 4}))
    with pytest.raises(
        NeojaxError, match=r"b\.json: no key num_attention_heads, which a GPT-NeoX config needs"
    ):
        configs.load(tmp_path / "b.json")
    assert cli.main(["train", str(tmp_path / "a"), str(tmp_path / "gone.yml"), "train.steps=1"]) == 2
    assert "cannot read config" in (error := capsys.readouterr().err) and "gone.yml" in error
    (tmp_path / "c.yml").write_text("seed: 3")
    for command in ("train", "inspect"):
        assert cli.main([command, str(tmp_path / "a"), str(tmp_path / "c"), "model.n_embd=15"]) == 2
        assert "num_attention_heads=2" in capsys.readouterr().err


def test_convert_merges_and_says_where_each_key_came_from(tmp_path, capsys):
    write(tmp_path, '"gradient_accumulation_steps": 2, "hostfile": "h"')
    (tmp_path / "b.yml").write_text('{"data-path": "text", "save": "runs/x", "checkpoint_factor": 5}')
    files = [str(tmp_path / name) for name in ("a.yml", "b.yml", "run.yml")]
    assert cli.main(["convert", *files, "train.batch_size=16"]) == 0
    text = (tmp_path / "run.yml").read_text()
    assert "  n_layer: 2  # num_layers\n" in text and "  batch_size: 16  # given\n" in text
    assert "# Without: hostfile (JAX finds processes and devices)" in text
    config = configs.load(tmp_path / "run.yml")
    assert config == configs.load(files[:2], ["train.batch_size=16"]) and config.train.microbatch == 8
    assert cli.main(["convert", *files]) == 2  # run.yml is there


CHECKPOINT = ("latest", "layer_00-model_00-model_states.pt", "mp_rank_00_model_states.pt")


@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_checkpoint_of_gpt_neox_is_never_opened_and_told_how_to_export(name, tmp_path, capsys):
    step = tmp_path / "ck" / "global_step10"
    step.mkdir(parents=True)
    (tmp_path / "ck" / name if name == "latest" else step / name).write_text("global_step10")
    for run in (
        ["convert", str(tmp_path / "ck"), str(tmp_path / "out")],
        ["sample", str(tmp_path / "ck"), "--prompt", "a"],
        ["inspect", str(tmp_path / "ck")],
        ["train", str(write(tmp_path, f'"load": "{tmp_path}/ck"')), "train.batch_size=8"],
    ):
        assert cli.main(run) == 2
        error = capsys.readouterr().err
        assert "convert_neox_to_hf.py --input_dir " in error and str(step) in error, run
    assert not (tmp_path / "out").exists()
