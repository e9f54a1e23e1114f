"""gpt-neo's JSON configs: every shipped file, every key, and what cannot be honoured."""

import json

import pytest
import yaml

from neojax import cli
from neojax.config import ExpertsConfig, value_at
from neojax.config.spelling import FLAT
from neojax.convert import configs, gpt_neo
from neojax.errors import NeojaxError

SMALL = {
    "n_head": 2,
    "n_embd": 16,
    "n_vocab": 32,
    "n_ctx": 8,
    "n_layer": 2,
    "attention_types": [[["global", "local"], 1]],
    "lr": 0.001,
    "train_batch_size": 8,
    "train_steps": 10,
    "opt_name": "adam",
    "warmup_steps": 2,
}


def write(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({**SMALL, **keys}))
    return path


def load(folder, **keys):
    return configs.load(write(folder, **keys))


@pytest.fixture(scope="module")
def shipped(shared_data):
    files = sorted((shared_data / "gpt-neo-configs").glob("*.json"))
    assert len(files) == 10
    return files


def test_every_shipped_config_loads_and_its_yaml_is_the_same_config(shipped, tmp_path):
    for path in shipped:
        config = configs.load(path)
        again = tmp_path / "run.yml"
        again.write_text(gpt_neo.convert_text(path))
        assert configs.load(again) == config, path.name
        raw = json.loads(path.read_text())
        model, train = config.model, config.train
        for key in ("n_head", "n_embd", "n_vocab", "n_ctx", "n_layer", "res_dropout", "scale_by_depth"):
            assert value_at(config, FLAT.get(key, f"model.{key}")) == raw[key]
        assert (train.learning_rate, train.batch_size, train.steps) == (
            raw["lr"],
            raw["train_batch_size"],
            raw["train_steps"],
        )
        assert train.weight_decay == raw["weight_decay"] and train.clip_norm == raw["gradient_clipping"]
        assert train.remat == ("full" if raw["recompute_grad"] else "none")
        assert train.precision == raw.get("precision", "float32")
        assert train.run_dir == raw["model_path"]
        assert model.mlp.activation == "gelu_new"
        assert not train.bias_correction and train.warmup_scales_decay


def test_every_shipped_mesh_and_layout_fits_its_model(shipped):
    from neojax.layout.mesh import abstract_layout
    from neojax.models import Transformer
    from neojax.training.optimizer import make_optimizer

    for path in shipped:
        config = configs.load(path)
        model = Transformer(config.model, abstract_layout(config.mesh))
        model.stored()
        mask = make_optimizer(config.train, model.dims())  # the patterns of no_decay match
        assert mask is not None


def test_datasets_are_resolved_beside_the_config(shipped):
    by_name = {path.stem: configs.load(path) for path in shipped}
    bare = by_name["gpt2_small"]  # "datasets": ["openwebtext2_new_inputs"]
    assert [s.path for s in bare.data.train] == [
        "gs://neo-datasets/openwebtext2_new_inputs/train/*.tfrecords"
    ]
    assert bare.data.validation[0].path.endswith("eval/*.tfrecords")
    assert (bare.train.eval_every, bare.train.eval_batches) == (
        5000,
        8,
    )  # 30 x 128 sequences in batches of 512
    assert by_name["gpt3_13B_256"].train.microbatch == 16  # 2048 tokens a replica, 16 replicas
    assert by_name["gpt3_XL_256_Pile"].mesh.layout == "batch:x, memory_length:y, embd:y"


def test_weights_nulls_and_several_datasets(tmp_path):
    (tmp_path / "dataset_configs").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}_0.tfrecords").touch()
        text = {
            "path": f"{name}_*.tfrecords",
            "eval_path": "",
            "tokenizer_path": f"{name}.json",
            "n_vocab": 32,
        }
        (tmp_path / "dataset_configs" / f"{name}.json").write_text(json.dumps(text))
    config = load(
        tmp_path, datasets=[["a", 25, "documents_random", 3.0], ["b", None, None, None]], eval_steps=5
    )
    assert [(s.path, s.weight) for s in config.data.train] == [
        (str(tmp_path / "a_*.tfrecords"), 3.0),
        (str(tmp_path / "b_*.tfrecords"), 1.0),
    ]
    assert config.data.validation == ()


def test_what_is_written_is_in_groups_with_the_originals_names(tmp_path):
    path = write(tmp_path, n_layer=4, attention_types=[[["global"], 4]], scalenorm=True, axial_pos_emb=[2, 4])
    text = gpt_neo.convert_text(path, ["model.window_size=3", "model.embedding.tied=false"])
    model = text[text.index("model:") : text.index("\ntrain:")]
    assert (
        model
        == """model:
  family: gpt_neo
  n_layer: 4
  n_embd: 16
  n_ctx: 8
  n_vocab: 32
  attention:
    heads: 2  # n_head
    types: [[[global], 4]]  # attention_types
    window: 3  # given
  norm:
    kind: scale  # scalenorm
  positions:
    kind: axial  # axial_pos_emb
    axial: [2, 4]  # axial_pos_emb
  embedding:
    tied: false  # given
"""
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.rezero=false"],
        ["model.norm.kind=layer", "model.positions.kind=learned"],
        ["model.axial_pos_emb=[4, 2]"],
        ["model.rotary_emb=true", "model.n_head=1", "model.attention.heads=2"],
        ["model.attention={heads: 1, window: 2}", "model.attention_types=[local]"],
    ],
)
def test_overrides_stand_in_what_is_written(overrides, tmp_path):
    path = write(tmp_path, rezero=True, axial_pos_emb=[2, 4])
    (tmp_path / "run.yml").write_text(gpt_neo.convert_text(path, overrides))
    config = configs.load(path, overrides)
    assert configs.load(tmp_path / "run.yml") == config != configs.load(path)


def test_an_unknown_override_is_not_left_out_of_what_is_written(tmp_path):
    with pytest.raises(
        NeojaxError, match=r"unknown key model\.attention\.head; did you mean model\.attention\.heads"
    ):
        gpt_neo.convert_text(write(tmp_path), ["model.attention.head=3"])


FEATURES = {
    "rotary_emb": ({"rotary_emb": True, "axial_pos_emb": [4, 2]}, "model.positions.kind", "rotary"),
    "rotary off": ({"rotary_emb": False}, "model.positions.kind", "learned"),
    "axial": ({"axial_pos_emb": [4, 2]}, "model.positions.axial", (4, 2)),
    "axial kind": ({"axial_pos_emb": [4, 2], "rotary_emb": "False"}, "model.positions.kind", "axial"),
    "rezero": ({"rezero": True, "scalenorm": True}, "model.norm.kind", "rezero"),
    "scalenorm": ({"rezero": False, "scalenorm": True}, "model.norm.kind", "scale"),
    "memory": ({"num_mem_kv": "4"}, "model.attention.memory_slots", 4),
    "untied": ({"no_weight_tie": True}, "model.embedding.tied", False),
    "radius": ({"local_attention_radius": 4}, "model.attention.window", 4),
    "what was read": ({"activation_fn": "selu"}, "model.mlp.activation", "selu"),
    "what was written": ({"activation_function": "mish"}, "model.mlp.activation", "mish"),
    "gelu": ({"activation_function": "gelu"}, "model.mlp.activation", "gelu_new"),
    "adafactor": ({"opt_name": "Adafactor"}, "train.optimizer", "adafactor"),
    "numeric text": ({"lr": "1e-4"}, "train.learning_rate", 1e-4),
    "null": ({"gradient_clipping": None, "seed": None}, "train.clip_norm", 0.0),
    "no decay": ({"lr_decay": None}, "train.schedule", "constant"),
    "linear": ({"lr_decay": "linear", "lr_decay_end": 7}, "train.decay_steps", 7),
    "z_loss": ({}, "train.z_loss", 1e-4),
    "entmax": ({"entmax_loss": True}, "train.loss", "entmax"),
    "remat": ({"recompute_grad": True}, "train.remat", "full"),
    "bf16": ({"precision": "bfloat16"}, "train.precision", "bfloat16"),
    "seed": ({"seed": 7}, "train.seed", 7),
    "microbatch": ({"tokens_per_mb_per_replica": 24}, "train.microbatch", 2),  # 3 rows do not divide 8
    "masked": ({"mlm_training": True, "mlm_mask_id": 31}, "model.causal", False),
    "mask": ({"mlm_training": True, "mlm_mask_id": 31, "mlm_mask_prob": 0.3}, "train.mlm_mask_prob", 0.3),
    "mask unused": ({"mlm_mask_id": 31}, "train.mlm_mask_id", None),
}


@pytest.mark.parametrize("name", FEATURES)
def test_each_key_has_its_meaning(name, tmp_path):
    keys, where, value = FEATURES[name]
    if "microbatch" in where:
        keys = {**keys, "mesh_shape": "x:1", "layout": "batch:x"}
    assert value_at(load(tmp_path, **keys), where) == value


def test_unknown_keys_and_rules_are_listed_once(tmp_path, capsys):
    config = load(
        tmp_path,
        my_key=1,
        other=2,
        iterations=500,
        mesh_shape="x:1;y:1",
        layout="batch:x vocab:n_vocab,foo:y",
    )
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "layout rule vocab:n_vocab, layout rule foo:y, my_key, other" in err
    assert "iterations" not in err
    assert (config.mesh.shape, config.mesh.layout) == ("x:1, y:1", "batch:x")
    assert "my_key" in gpt_neo.convert_text(tmp_path / "config.json").splitlines()[1]


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({}, (None, 0.0, 1e-30, 1e-3)),
        ({"weight_decay": None, "beta1": None}, (None, 0.0, 1e-30, 1e-3)),
        ({"weight_decay": 0, "beta1": 0}, (0.0, 0.0, 1e-30, 1e-3)),  # a decay of zero, not none
        (
            {"weight_decay": 0.1, "beta1": 0.9, "ada_epsilon1": "1e-20", "ada_epsilon2": 0.01},
            (0.1, 0.9, 1e-20, 0.01),
        ),
    ],
)
def test_adafactor_is_given_what_gpt_neo_gave_it(tmp_path, capsys, keys, expected):
    path = write(tmp_path, opt_name="adafactor", **{"warmup_steps": 0} | keys)
    train = configs.load(path).train
    names = ("decay", "momentum", "epsilon1", "epsilon2")
    assert tuple(getattr(train, f"adafactor_{name}") for name in names) == expected
    assert train.weight_decay == 0  # weights were not decayed
    assert not capsys.readouterr().err
    (tmp_path / "run.yml").write_text(gpt_neo.convert_text(path))
    assert configs.load(tmp_path / "run.yml").train == train


def test_the_schedule_that_gpt_neo_kept_from_adafactor_is_listed(tmp_path, capsys):
    train = load(tmp_path, opt_name="adafactor", lr_decay="cosine").train
    assert (train.schedule, train.warmup_steps, train.learning_rate) == ("constant", 0, 0.001)
    err = capsys.readouterr().err
    assert "lr_decay (" in err and "warmup_steps (" in err and len(err.splitlines()) == 1
    load(tmp_path, opt_name="adam", ada_epsilon1=1e-20, lr_decay="cosine")
    assert not capsys.readouterr().err


def test_rezero_and_scalenorm_have_weights_to_leave_undecayed(tmp_path):
    from neojax.models import Transformer
    from neojax.training.optimizer import decay_mask

    for keys in ({}, {"rezero": True}, {"scalenorm": True}):
        config = load(tmp_path, **keys)
        mask = decay_mask(config.train.no_decay, Transformer(config.model).dims())
        kept = {n for n, decays in mask.items() if not decays}
        assert kept and all("bias" in n or "norm_1" in n or "norm_2" in n or "gate" in n for n in kept)
        assert mask["norm_f.scale"] and mask["norm_f.bias"] and mask["wte"]  # gpt-neo decays ln_f


def test_experts_are_read_with_the_defaults_of_their_gating(tmp_path, capsys):
    """The first as in the one config of gpt-neo's with experts, where the last layer is one too many."""
    shipped = {"moe_layers": [1, 2], "moe_params": {"moe_dropout_rate": 0.0}, "n_layer": 2}
    experts = load(tmp_path, **shipped).model.experts
    assert experts == ExpertsConfig(
        16, (1,), 4096, "relu", 2, "random", 0.2, capacity_factor=0.625, group_size=1024, balance_loss=0.01
    )
    assert "moe_layers 2 (the last layer is 1)" in capsys.readouterr().err
    switch = {"moe_num_experts": "8", "moe_gating": "switch", "moe_z_loss": 0.1, "moe_loss_coef": 0.02}
    jitter = {"moe_switch_policy_train": "input_jitter", "moe_switch_jitter": 0.05, "moe_hidden_size": 64}
    more = {"moe_capacity_factor_eval": 4, "moe_what": 1}
    keys = {
        **shipped,
        "moe_layers": [0],
        "moe_activation": "gelu",
        "moe_params": {**switch, **jitter, **more},
    }
    experts = load(tmp_path, **keys).model.experts
    assert (experts.number, experts.top_k, experts.jitter, experts.width) == (8, 1, 0.05, 64)
    assert (experts.balance_loss, experts.z_loss, experts.activation) == (0.02, 0.002, "gelu_new")
    assert experts.capacity_factor == 1.25 and experts.second == "all"
    err = capsys.readouterr().err
    assert "moe_capacity_factor_eval (nothing is dropped" in err and "moe_what" in err and "jitter" not in err
    drawn = {"moe_gating": "rand_1", "moe_rand_1_policy_train": "sample"}
    assert load(tmp_path, **{**shipped, "moe_params": drawn}).model.experts.sampled


SWITCH, RAND_1 = {"moe_gating": "switch"}, {"moe_gating": "rand_1"}
JITTER = {"moe_rand_1_policy_train": "input_jitter", "moe_rand_1_jitter": 0.2}


@pytest.mark.parametrize(
    "keys, expected, told",
    [
        (SWITCH, {"tries": 1}, "note: moe_gating=switch without moe_switch_top_k"),
        ({**SWITCH, "moe_switch_top_k": 4, **JITTER}, {"tries": 4, "jitter": 0.2}, ""),
        ({**SWITCH, "moe_switch_top_k": 1, "moe_rand_1_policy_train": "sample"}, {}, "=sample (switch took"),
        ({**SWITCH, "moe_switch_top_k": 1, "moe_switch_policy_train": "sample"}, {"sampled": True}, ""),
        ({**SWITCH, "moe_switch_top_k": 1, **JITTER, "moe_switch_jitter": 0.2}, {"jitter": 0.2}, ""),
        ({**RAND_1, **JITTER, "moe_switch_top_k": 4}, {"jitter": 0.2}, "moe_switch_top_k"),
        ({**RAND_1, "moe_rand_1_policy_train": "input_dropout"}, {"input_dropout": 0.1}, ""),
        (
            {**RAND_1, "moe_rand_1_policy_train": "input_dropout", "moe_rand_1_dropout": 0.3},
            {"input_dropout": 0.3},
            "",
        ),
        ({**RAND_1, "moe_rand_1_jitter": 0.3}, {}, "moe_rand_1_jitter"),
        ({**RAND_1, "moe_rand_1_policy_eval": "sample"}, {}, "policy_eval (nothing is drawn in evaluation)"),
        ({"moe_second_policy_train": "none"}, {"second": "none"}, ""),
        ({"moe_second_threshold_train": 0}, {"second": "all"}, ""),
        ({"moe_min_expert_capacity": 4}, {"min_capacity": 4, "second": "random"}, ""),
        ({"moe_output_dim": 8}, {"second": "random"}, "moe_output_dim (gpt-neo's was n_embd"),
        ({"moe_capacity_factor_second_level": 1}, {"second": "random"}, "second_level (of experts in two"),
    ],
)
def test_every_key_of_a_gating_is_read_or_told(keys, expected, told, tmp_path, capsys):
    """The keys of Mesh-TensorFlow 0.1.18, which gpt-neo ran on, and of later versions; each has an effect, or
    is told once."""
    experts = load(tmp_path, moe_layers=[1], moe_params=keys).model.experts
    names = ("tries", "jitter", "sampled", "input_dropout", "second", "min_capacity")
    plain = ExpertsConfig()
    found = {name: value for name in names if (value := getattr(experts, name)) != getattr(plain, name)}
    assert found == {name: value for name, value in expected.items() if value != getattr(plain, name)}
    err = capsys.readouterr().err
    assert (err.count(told) == 1) if told else not err


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"moe_layers": "1"}, "moe_layers: expected a list"),
        (
            {"moe_layers": [1], "moe_params": {**SWITCH, **JITTER, "moe_switch_jitter": 0.1}},
            "moe_rand_1_jitter=0.2 and moe_switch_jitter=0.1 are two spellings",
        ),
        ({"moe_layers": [1], "moe_params": {**SWITCH, "moe_switch_top_k": 17}}, "tries=17 is more than"),
        ({"moe_layers": [1], "moe_params": {"moe_dropout_rate": 0.1}}, "moe_dropout_rate=0.1"),
        ({"n_head": None}, "n_head"),
        ({"activation_function": "geluu"}, "gelu"),
        ({"lr": "fast"}, "lr: expected a number"),
        ({"lr_decay": "sudden"}, "lr_decay"),
        ({"mlm_training": True}, "mlm_mask_id"),
        ({"model_type": "gpt_neo"}, "Hugging Face"),
        ({"datasets": [[3]]}, "datasets"),
        ({"axial_pos_emb": [2, 2]}, "positions.axial"),
    ],
)
def test_what_cannot_be_read_is_one_line(keys, message, tmp_path):
    with pytest.raises(NeojaxError, match=message) as e:
        load(tmp_path, **keys)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", [b"{", b"\xff{}", b"[" * 100_000, b'{"n_ctx": ' + b"9" * 5000 + b"}", b"\0"])
def test_not_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(NeojaxError, match="not valid JSON") as e:
        configs.load(tmp_path / "config.json")
    assert len(str(e.value).splitlines()) == 1


def test_paths_that_are_not_here_are_one_line_with_the_overrides(tmp_path, capsys):
    path = write(tmp_path, datasets=["pile-x"], model_path="gs://bucket/My_Model")
    assert cli.main(["train", str(path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "dataset_configs/pile-x.json" in err and "give data.train=PATH" in err


def test_a_mesh_larger_than_the_machine_names_a_shape_that_fits():
    from neojax.layout.mesh import fill_shape

    with pytest.raises(NeojaxError, match=r"mesh\.shape=x:-1,y:2"):
        fill_shape({"x": 128, "y": 2}, 8, "mesh.shape")
    with pytest.raises(NeojaxError, match=r"mesh\.shape=x:-1,y:1"):
        fill_shape({"x": 64, "y": 4}, 2, "mesh.shape")


def test_convert_writes_commented_yaml(tmp_path):
    path = write(tmp_path, mlm_training=True, mlm_mask_id=31, n_vocab="32")
    assert cli.main(["convert", str(path), str(tmp_path / "run.yml")]) == 0
    text = (tmp_path / "run.yml").read_text()
    assert (
        "  n_vocab: 32\n" in text
        and "learning_rate: 0.001  # lr" in text
        and "causal: false  # mlm_training" in text
    )
    assert yaml.safe_load(text) == gpt_neo.load(path)
