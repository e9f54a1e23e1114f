import dataclasses
import json
from pathlib import Path

import bundle_writer as writer
import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from helpers import layout_of, model_config, tiny, write_data

from neojax import config as configuration
from neojax.config import Config, DataConfig, SourceConfig, TrainConfig
from neojax.convert import mesh_tf
from neojax.convert.mesh_tf_names import places
from neojax.errors import NeojaxError
from neojax.loading import load as load_run
from neojax.models import Transformer
from neojax.models.pieces import pieces
from neojax.runs.checkpoint import Checkpoints
from neojax.training.loop import train
from neojax.training.moments import opt_state
from neojax.training.new_run import write_run
from neojax.training.optimizer import make_optimizer
from neojax.training.state import abstract_state

REAL = Path(__file__).parent / "data" / "mesh_tf"
CONFIG = tiny(n_vocab=53)
PADDED = 64


def variables(params):
    """A model's parameters under gpt-neo's names and in its shapes; groups are of two layers."""
    d = CONFIG.n_embd
    found = {
        "gpt2/wte": np.pad(np.asarray(params["wte"]), ((0, PADDED - CONFIG.n_vocab), (0, 0))),
        "gpt2/wpe": params["wpe"],
        "gpt2/ln_f/g": params["norm_f.scale"],
        "gpt2/ln_f/b": params["norm_f.bias"],
    }
    for layer in range(CONFIG.n_layer):
        own = {k: params[f"blocks.{layer % 2}.{k}"][layer // 2] for k in BLOCK}
        for key, name in BLOCK.items():
            value = np.asarray(own[key])
            if key in ("attn.query", "attn.key", "attn.value", "attn.out"):
                value = value.reshape(d, d)
            found[f"gpt2/h{layer}/{name}"] = value
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


BLOCK = {
    **{
        f"norm_{i}.{ours}": f"norm_{i}/{theirs}"
        for i in (1, 2)
        for ours, theirs in (("scale", "g"), ("bias", "b"))
    },
    "attn.query": "attn/q",
    "attn.key": "attn/k",
    "attn.value": "attn/v",
    "attn.out": "attn/o",
    "attn.out_bias": "attn/compute_output_bias/o_b",
    "mlp.up": "mlp/conv1d_main/c_fc/kernel",
    "mlp.up_bias": "mlp/conv1d_main/c_fc/bias",
    "mlp.down": "mlp/conv1d_main/c_proj/kernel",
    "mlp.down_bias": "mlp/conv1d_main/c_proj/bias",
}


def test_experts_have_the_variables_of_mesh_tensorflow():
    experts = {"experts.number": 4, "experts.layers": [1, 3]}
    for top_k, gating in ((2, "top_2_gating"), (1, "switch_gating")):
        model = Transformer(tiny(**experts, **{"experts.top_k": top_k}))
        found = {place.tensor: place for place in places(model.config, pieces(model))}
        for layer in (1, 3):
            up, down, router = (found[f"gpt2/h{layer}/{n}/kernel"] for n in ("wi", "wo", gating))
            assert (up.piece.dims, down.piece.dims) == (
                ("experts", "embd", "expert_mlp"),
                ("experts", "expert_mlp", "embd"),
            )
            assert router.piece.dims == ("embd", "routes") and router.order == [0, 1]
            assert f"gpt2/h{layer}/mlp/conv1d_main/c_fc/kernel" not in found


def test_a_router_is_found_by_the_name_of_its_gating(tmp_path):
    """Models of one expert a token: switch and rand_1 name it otherwise."""
    rng = np.random.default_rng(0)
    experts = {f"experts.{k}": v for k, v in {"number": 4, "layers": [1, 3], "top_k": 1, "width": 8}.items()}
    model = Transformer(tiny(n_vocab=53, **experts))
    path = tmp_path / "experts.yml"
    path.write_text(configuration.dump(Config(model=model.config)))
    where = places(model.config, pieces(model))
    tensors = {p.tensor: rng.normal(size=p.tensor_shape).astype("f4") for p in where}
    loaded = {}
    for gating in ("switch_gating", "rand_1_gating"):
        own = {name.replace("switch_gating", gating): value for name, value in tensors.items()}
        loaded[gating] = mesh_tf.load(write(tmp_path, own), path).model.params()
        router = loaded[gating]["blocks.1.experts.router"]
        np.testing.assert_array_equal(router[1], own[f"gpt2/h3/{gating}/kernel"])
    first, second = loaded.values()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "model.yml"
    path.write_text(configuration.dump(Config(model=CONFIG, train=TrainConfig(steps=8, warmup_steps=2))))
    return path


@pytest.fixture
def weights():
    """Random values for every variable."""
    rng = np.random.default_rng(0)
    shapes = Transformer(CONFIG).params()
    params = {name: rng.normal(size=p.shape) * 0.2 for name, p in shapes.items()}
    return variables(params)


def write(tmp_path, tensors, step=5, **options):
    return writer.write(
        tmp_path / "in" / f"model.ckpt-{step}", {**tensors, "global_step": np.int64(step)}, **options
    )


def hugging_face(tensors):
    """transformers' GPT-Neo with the same weights, named by that library's own rules."""
    import torch
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    c = CONFIG
    config = GPTNeoConfig(
        vocab_size=c.n_vocab,
        hidden_size=c.n_embd,
        num_layers=c.n_layer,
        num_heads=c.attention.heads,
        max_position_embeddings=c.n_ctx,
        window_size=c.attention.window,
        attention_types=[[["global", "local"], c.n_layer // 2]],
    )
    config._attn_implementation = "eager"
    renamed = {}
    for name, value in tensors.items():
        name = name.removeprefix("gpt2/").replace("norm_1", "ln_1").replace("norm_2", "ln_2")
        name = name.replace("conv1d_main/", "").replace("compute_output_bias/o_b", "out_proj/bias")
        if name.startswith("h"):
            layer, rest = name[1:].split("/", 1)
            name = f"h.{layer}.{rest}"
        for short, full in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
            if name.endswith(f"attn/{short}"):
                name = name[: -len(short)] + f"{full}/kernel"
        name = name.replace("attn/", "attn/attention/")
        if name.endswith("kernel"):
            name, value = name.removesuffix("kernel") + "weight", value.T
        for theirs, full in (("g", "weight"), ("b", "bias")):
            if name.endswith(f"/{theirs}"):
                name = name.removesuffix(theirs) + full
        if name in ("wte", "wpe"):
            name, value = f"{name}/weight", value[: c.n_vocab] if name == "wte" else value
        renamed["transformer." + name.replace("/", ".")] = torch.tensor(np.asarray(value, np.float32))
    model = GPTNeoForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


@pytest.mark.parametrize("shards, dtype", [(1, np.float32), (3, ml_dtypes.bfloat16)])
def test_logits_are_those_of_the_same_weights_in_transformers(tmp_path, weights, config_file, shards, dtype):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    loaded = mesh_tf.load(write(tmp_path, weights, shards=shards), config_file)
    tokens = np.random.default_rng(1).integers(0, CONFIG.n_vocab, (2, CONFIG.n_ctx)).astype(np.int32)
    with torch.no_grad():
        theirs = hugging_face(weights)(torch.tensor(tokens).long()).logits.numpy()
    np.testing.assert_allclose(loaded.model(tokens), theirs, atol=1e-4)
    assert loaded.step == 5 and loaded.moments == {}


def test_on_a_mesh_every_tensor_is_the_same_and_padding_is_zero(tmp_path, weights, config_file):
    moments = {
        f"{n}/{slot}": v + i for n, v in weights.items() for i, slot in enumerate(("adam_m", "adam_v"))
    }
    prefix = write(tmp_path, weights | moments)
    plain = mesh_tf.load(prefix, config_file)
    layout = layout_of("data:2, model:4", "batch:data, heads:model, vocab:model", "embd:data")
    split = mesh_tf.load(prefix, config_file, layout)
    for ours, others in (
        (plain.model.params(), split.model.params()),
        *zip(plain.moments.values(), split.moments.values()),
    ):
        for name, value in ours.items():
            other = np.asarray(others[name])
            if name == "wte":
                assert other.shape[0] == 56 and not other[53:].any()
                other = other[:53]
            np.testing.assert_array_equal(value, other)


@pytest.mark.slow
def test_training_goes_on_with_the_moments_and_the_step(tmp_path):
    data = str(write_data(tmp_path / "data", n_vocab=CONFIG.n_vocab))
    settings = TrainConfig(
        run_dir=str(tmp_path / "whole"), steps=6, batch_size=8, warmup_steps=2, log_every=1, checkpoint_every=3,  # noqa: E501
        learning_rate=0.01, tensorboard=False,
    )  # fmt: skip
    config = Config(model=CONFIG, data=DataConfig(train=(SourceConfig(data),)), train=settings)
    train(config)

    model = Transformer(CONFIG)
    with jax.set_mesh(model.layout.mesh), Checkpoints(tmp_path / "whole") as checkpoints:
        state = checkpoints.restore(3, abstract_state(model, make_optimizer(settings, model.dims())).saved())
    adam = state["opt_state"][0]
    tensors = variables(state["params"])
    for slot, values in (("adam_m", adam.mu), ("adam_v", adam.nu)):
        tensors |= {f"{name}/{slot}": value for name, value in variables(values).items()}
    (tmp_path / "run.yml").write_text(configuration.dump(config))
    loaded = mesh_tf.load(write(tmp_path, tensors, step=3), tmp_path / "run.yml")
    assert loaded.keeps_moments
    changed = dataclasses.replace(settings, moment_dtype="bfloat16", frozen=("vocab",))
    in_half = dataclasses.replace(loaded, config=dataclasses.replace(config, train=changed))
    half = opt_state(in_half)[0]
    assert half.mu.keys() == half.nu.keys() == loaded.moments["mu"].keys() - {"wte"}
    for name, moment in half.mu.items():
        assert (moment == loaded.moments["mu"][name].astype("bfloat16")).all() and moment.dtype == "bfloat16"
    write_run(loaded.model, tmp_path / "on", loaded.config, loaded.step, opt_state(loaded))
    train(configuration.of_run(tmp_path / "on"))

    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "on")
    }
    losses = {
        name: {r["step"]: (r["loss"], r["learning_rate"]) for r in found} for name, found in rows.items()
    }
    assert losses["on"] == {step: losses["whole"][step] for step in (4, 5, 6)}


def test_without_moments_the_schedule_goes_on_and_they_begin_anew(tmp_path, weights, config_file):
    loaded = mesh_tf.load(write(tmp_path, weights), config_file)
    leaves = jax.tree_util.tree_leaves_with_path(opt_state(loaded))
    counts = {str(path): int(v) for path, v in leaves if "count" in str(path[-1])}
    assert sorted(counts.values()) == [0, 5]
    write_run(loaded.model, tmp_path / "run", loaded.config, loaded.step, opt_state(loaded))
    tokens = np.zeros((1, 4), np.int32)
    np.testing.assert_array_equal(load_run(tmp_path / "run")(tokens), loaded.model(tokens))


def without(name):
    return lambda w: w.pop(name)


def put(name, value):
    return lambda w: w.update({name: np.asarray(value, np.float32)})


@pytest.mark.parametrize(
    "change, cause",
    [
        (without("gpt2/h1/attn/q"), r"no variable gpt2/h1/attn/q, which .*model\.yml asks for"),
        (put("gpt2/h4/attn/q", np.ones((32, 32))), "holds gpt2/h4/attn/q, which the model"),
        (put("gpt2/wpe", np.ones((25, 32))), r"gpt2/wpe has shape \[25, 32\], but by .* it has \[24, 32\]"),
        (put("gpt2/wte", np.ones((52, 32))), r"gpt2/wte has shape \[52, 32\], but by .* it has \[53, 32\]"),
        (put("gpt2/ln_f/g/adam_m", np.ones(3)), r"gpt2/ln_f/g/adam_m has shape \[3\]"),
    ],
)
def test_what_does_not_fit_the_config_is_named(tmp_path, weights, config_file, change, cause):
    change(weights)
    with pytest.raises(NeojaxError, match=cause) as e:
        mesh_tf.load(write(tmp_path, weights), config_file)
    assert "\n" not in str(e.value)


def test_a_missing_config_or_checkpoint_is_said(tmp_path, weights):
    with pytest.raises(NeojaxError, match=r"which gpt-neo config.* there is none; name it with --config"):
        mesh_tf.load(write(tmp_path, weights))
    with pytest.raises(NeojaxError, match="has no TensorFlow checkpoint"):
        mesh_tf.load(tmp_path)


def neojax_convert(*arguments):
    """`neojax convert`, without the parsers of the other commands."""
    import argparse

    from neojax.commands import convert as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(a) for a in arguments]))


def test_a_checkpoint_of_tensorflow_becomes_a_run(tmp_path, capsys):
    pytest.importorskip("neojax.convert.gpt_neo")
    neojax_convert(REAL, tmp_path / "run")
    said = capsys.readouterr().out
    assert "at step 1234, with the optimizer's state" in said and "no tokenizer beside" in said
    config = yaml.safe_load((tmp_path / "run" / "config.yml").read_text())
    assert config["model"]["n_embd"] == 8 and config["train"]["steps"] == 2000
    assert load_run(tmp_path / "run")(np.zeros((1, 4), np.int32)).shape == (1, 4, 53)


def test_nothing_is_written_of_a_damaged_checkpoint(tmp_path, weights, config_file):
    prefix = write(tmp_path, weights)
    shard = prefix.with_name(prefix.name + ".data-00000-of-00001")
    raw = shard.read_bytes()
    for content, cause in ((raw[:-4], "cut short"), (raw[:-4] + b"oops", "bad checksum of gpt2/")):
        shard.write_bytes(content)
        with pytest.raises(NeojaxError, match=cause):
            neojax_convert(prefix.parent, tmp_path / "run", "--config", config_file)
        assert not list(tmp_path.glob("run*"))


def original_variables(config, params):
    """The parameters of any model under gpt-neo's names: gpt2/h0/..., or gpt2//... where layers share
    them."""
    values = {name: np.asarray(p, np.float32) for name, p in params.items()}
    found, d = {}, config.n_embd
    whole = {"wte": "wte", "wpe": "wpe", "wpe.row": "axial_wpe_1", "wpe.column": "axial_wpe_2"}
    whole |= {"norm_f.scale": "ln_f/g", "norm_f.bias": "ln_f/b"}
    for ours, theirs in whole.items():
        if ours in values:
            found[f"gpt2/{theirs}"] = values[ours]
    for layer in range(1 if config.share_parameters else config.n_layer):
        prefix = "blocks.0." if config.share_parameters else f"blocks.{layer % 2}."
        own = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
        if not config.share_parameters:
            own = {n: v[layer // 2] for n, v in own.items()}
        scope = "gpt2/" if config.share_parameters else f"gpt2/h{layer}"

        def put(name, value, scope=scope):
            found[f"{scope}/{name}"] = value

        for i in (1, 2):
            for ours, theirs in (("norm_{}.scale", "norm_{}/g"), ("norm_{}.bias", "norm_{}/b"),
                                 ("gate_{}.scale", "norm_rezero_{}/g")):  # fmt: skip
                if ours.format(i) in own:
                    put(theirs.format(i), own[ours.format(i)])
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            put(f"attn/{theirs}", own[f"attn.{ours}"].reshape(d, d))
        put("attn/compute_output_bias/o_b", own["attn.out_bias"])
        for ours, theirs in (("memory_key", "mem_k"), ("memory_value", "mem_v")):
            if f"attn.{ours}" in own:
                put(f"attn/attention/{theirs}", own[f"attn.{ours}"])
        for mlp in ("mlp", "mlp_macaron"):
            if f"{mlp}.up" not in own:
                continue
            halves = ["up", "gate"] if config.mlp.gated else ["up"]
            put(f"{mlp}/conv1d_main/c_fc/kernel", np.concatenate([own[f"{mlp}.{n}"] for n in halves], -1))
            put(f"{mlp}/conv1d_main/c_fc/bias", np.concatenate([own[f"{mlp}.{n}_bias"] for n in halves], -1))
            put(f"{mlp}/conv1d_main/c_proj/kernel", own[f"{mlp}.down"])
            put(f"{mlp}/conv1d_main/c_proj/bias", own[f"{mlp}.down_bias"])
    return found


OPTIONS = {
    "glu, scalenorm, axial": {"mlp_glu": True, "scalenorm": True, "axial_pos_emb": [5, 6]},
    "rezero, macaron, memory": {"rezero": True, "macaron": True, "num_mem_kv": 3},
    "shared, rotary": {"share_parameters": True, "rotary_emb": True, "num_mem_kv": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_read_from_its_original_variables(tmp_path, name):
    config = tiny(**OPTIONS[name], n_vocab=53)
    sizes = {k: getattr(config, k) for k in ("n_embd", "n_vocab", "n_ctx", "n_layer")}
    sizes["n_head"] = config.attention.heads
    types = {"attention_types": [[["global", "local"], 2]], "local_attention_radius": 7}
    options = OPTIONS[name] | (
        {"rotary_emb": False} if config.positions.kind == "rotary" else {}
    )  # gpt-neo took it for true
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **types, **options}))
    rng = np.random.default_rng(0)
    params = {n: rng.normal(size=p.shape).astype("f4") * 0.2 for n, p in Transformer(config).params().items()}
    tensors = original_variables(config, params)
    moments = {
        f"{n}/{slot}": v + i for n, v in tensors.items() for i, slot in enumerate(("adam_m", "adam_v"))
    }
    layout = layout_of("data:2, model:2", "batch:data, heads:model, mlp:model", "embd:data")
    loaded = mesh_tf.load(write(tmp_path, tensors | moments), tmp_path / "config.json", layout)
    for found, add in ((loaded.model.params(), 0), (loaded.moments["mu"], 0), (loaded.moments["nu"], 1)):
        assert found.keys() == params.keys()
        for key, value in params.items():
            np.testing.assert_array_equal(
                np.asarray(found[key])[: len(value) if value.ndim else None], value + add
            )
    assert loaded.config.model.positions == config.positions


@pytest.mark.parametrize("beta1", [None, 0.9])
def test_adafactor_goes_on_with_all_slots_it_had(tmp_path, weights, beta1, monkeypatch):
    """The second moment of every element stays what it was, and so does the momentum, by the learning
    rate."""
    monkeypatch.setattr("neojax.training.adafactor.MIN_FACTORED", 32)
    sizes = {k: getattr(CONFIG, k) for k in ("n_embd", "n_vocab", "n_ctx", "n_layer")}
    sizes["n_head"] = CONFIG.attention.heads
    types = {"attention_types": [[["global", "local"], 2]], "local_attention_radius": 7}
    optimizer = {"opt_name": "adafactor", "weight_decay": 0.1, "beta1": beta1, "lr": 0.02}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **types, **optimizer}))
    rng = np.random.default_rng(1)
    slots, moments = {}, {}
    for name, value in weights.items():
        if value.ndim < 2 or name == "gpt2/wpe":  # as of a table with a short axis
            moments[name] = slots[f"{name}_slot_v"] = rng.random(value.shape, "f4")
        else:
            rows, columns = rng.random(value.shape[0], "f4"), rng.random(value.shape[1], "f4")
            moments[name] = np.outer(rows, columns)
            means = [moments[name].mean(1), moments[name].mean(0)]
            longest = int(value.shape[1] > value.shape[0])  # vr is the mean over it
            slots[f"{name}_slot_vr"], slots[f"{name}_slot_vc"] = means[::-1] if longest == 0 else means
        slots[f"{name}_slot_m"] = value * 3  # left out where the config has no beta1
    loaded = mesh_tf.load(write(tmp_path, weights | slots, step=30), tmp_path / "config.json")
    assert loaded.keeps_moments
    found = variables(loaded.moments["squares"])
    for name, moment in moments.items():
        rows = CONFIG.n_vocab if name == "gpt2/wte" else None
        np.testing.assert_allclose(found[name][:rows], moment[:rows], rtol=1e-4, err_msg=name)
    adafactor, *_, schedule = opt_state(loaded)
    if beta1:
        adafactor, mean = adafactor
        for name, value in variables(mean.ema).items():
            rows = CONFIG.n_vocab if name == "gpt2/wte" else None
            np.testing.assert_allclose(value[:rows] * 0.02, weights[name][:rows] * 3, rtol=1e-6)
    assert (int(adafactor.step), int(schedule.count)) == (30, 30)
    query = "blocks.1.attn.query"
    row, col = np.asarray(adafactor.row[query]), np.asarray(adafactor.col[query])
    estimate = row[..., None, None] * col[:, None] / row.mean(1)[:, None, None, None]
    np.testing.assert_allclose(estimate, loaded.moments["squares"][query], rtol=1e-3)
    incomplete = {name: value for name, value in slots.items() if name != "gpt2/wte_slot_m"}
    partial = mesh_tf.load(write(tmp_path, weights | incomplete, step=30), tmp_path / "config.json")
    assert partial.keeps_moments == (beta1 is None)
    slots["gpt2/h0/attn/q_slot_vr"] = np.ones(3, "f4")
    with pytest.raises(NeojaxError, match=r"attn/q_slot_vr has shape \[3\], but .* has \[32\]"):
        mesh_tf.load(write(tmp_path, weights | slots, step=30), tmp_path / "config.json")


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"attention_types": ("none",)}, "layers of type none, at which gpt-neo doubled"),
        ({"tie_word_embeddings": False}, "no_weight_tie: gpt-neo's own output table had a bias"),
        ({"activation_function": "aria"}, "activation aria: gpt-neo saved its scalars under random names"),
    ],
)
def test_weights_that_mean_something_else_here_are_refused(tmp_path, weights, options, cause):
    path = tmp_path / "model.yml"
    path.write_text(configuration.dump(Config(model=model_config(CONFIG, **options))))
    with pytest.raises(NeojaxError, match=cause) as e:
        mesh_tf.load(write(tmp_path, weights), path)
    assert "\n" not in str(e.value)
