"""BERT and ALBERT directories: published configurations, old files, heads that lack, and what is refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
from bundle_writer import write
from helpers import layout_of, model_config, noisy
from safetensors.numpy import load_file, save_file

from neojax.config import replaced
from neojax.convert import google_bert, hf
from neojax.convert.hf_config import read_config, to_json
from neojax.errors import NeojaxError
from neojax.loading import load_params
from neojax.models import Transformer

SIZES = {"n_layer": 4, "n_embd": 24, "n_head": 4, "n_ctx": 13, "n_vocab": 53, "mlp.width": 20}
SPLIT = layout_of("data:2, model:4", "batch:data, heads:model, vocab:model", "embd:data")


def encoder(family="bert", **keys):
    """A tiny one with noise for weights."""
    groups = {"layer_groups": 2, "inner_layers": 2, "embedding.width": 12} if family == "albert" else {}
    return noisy(model_config(family=family, **SIZES, **groups, **keys))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A BERT for pre-training, and where it is saved."""
    model, folder = encoder(), tmp_path_factory.mktemp("bert") / "hf"
    hf.save(model, folder)
    return model, folder


@pytest.fixture
def saved(original, tmp_path):
    """The same, safe to spoil."""
    model, folder = original
    return model, shutil.copytree(folder, tmp_path / "hf")


def edit(folder, change):
    tensors = load_file(folder / hf.WEIGHTS)
    save_file(change(tensors) or tensors, folder / hf.WEIGHTS)


def configure(folder, **keys):
    raw = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps({key: v for key, v in raw.items() if v is not None}))


def assert_same(loaded, params):
    for name, value in loaded.params().items():
        np.testing.assert_array_equal(value, params[name], err_msg=name)


@pytest.mark.parametrize(
    "file, layers, width, heads, activation",
    [
        ("albert_config", 12, 768, 12, "gelu"),
        ("albert_config_large", 24, 1024, 16, "gelu"),
        ("albert_config_xl2", 24, 2048, 16, "gelu"),
    ],
)
def test_published_configs_of_albert_are_read_without_their_names(
    file, layers, width, heads, activation, shared_data, tmp_path
):
    """They name neither a family nor a class; keys of old that say nothing are left out."""
    (tmp_path / "config.json").write_bytes((shared_data / "hf-configs" / f"{file}.json").read_bytes())
    model = read_config(tmp_path)
    assert (model.family, model.n_layer, model.n_embd, model.attention.heads) == (
        "albert",
        layers,
        width,
        heads,
    )
    assert (model.mlp.activation, model.embedding.width, model.head.kinds) == (
        activation,
        128,
        ("mlm", "pair"),
    )
    assert (model.share_parameters, model.norm.order, model.norm.epsilon) == (True, "post", 1e-12)


def test_a_file_of_old_is_read(saved):
    """Without the prefix, norms called gamma and beta, a buffer of positions, and a bias of the table twice,
    of which the one that is called as it should be counts."""
    model, folder = saved

    def age(tensors):
        old = {name.removeprefix("bert."): value for name, value in tensors.items()}
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in old.items()
        }
        old["embeddings.position_ids"] = np.arange(13)[None]
        old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"] + 1
        old["cls.predictions.decoder.weight"] = old["embeddings.word_embeddings.weight"].copy()
        return old

    edit(folder, age)
    assert_same(hf.load(folder), model.params())

    def only_the_other(tensors):
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")

    edit(folder, only_the_other)
    assert_same(hf.load(folder), model.params())


def test_heads_that_a_file_lacks_begin_at_random_and_are_named_once(saved):
    """The same numbers on every mesh; those of other heads are left, and told too."""
    model, folder = saved
    labels = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": None}
    configure(folder, architectures=["BertForSequenceClassification"], **labels)
    with pytest.warns(
        UserWarning, match=r"no classifier\.bias, classifier\.weight, .*cls\.predictions"
    ) as told:
        loaded = hf.load(folder)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert loaded.config.head.labels == ("a", "b", "c")
    params = loaded.params()
    assert params["classifier.weight"].shape == (24, 3) and 0.01 < params["classifier.weight"].std() < 0.03
    assert not params["classifier.bias"].any()
    with pytest.warns(UserWarning):
        split = hf.load(folder, SPLIT).params()
    np.testing.assert_array_equal(split["classifier.weight"], params["classifier.weight"])
    assert_same(loaded, {**model.params(), **{n: p for n, p in params.items() if "classifier" in n}})


def test_training_begins_with_the_heads_that_are_asked_for(saved):
    """Of a file of another class: what it has of them is taken, such as the pooler of a BertForMaskedLM."""
    model, folder = saved
    configure(folder, architectures=["BertForMaskedLM"])
    asked = Transformer(replaced(model.config, "head.kinds", ("sequence_classification",)))
    with pytest.warns(UserWarning, match=r"no classifier\.bias, classifier\.weight"):
        params = load_params(folder, asked, seed=0)
    assert params.keys() == asked.stored().keys()
    np.testing.assert_array_equal(params["pooler.weight"], model.params()["pooler.weight"])
    with pytest.warns(UserWarning):
        other = load_params(folder, asked, seed=1)
    assert (other["classifier.weight"] != params["classifier.weight"]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(model.bind(load_params(folder, Transformer(model.config))), model.params())


BAD = {
    "activation": ({"hidden_act": "geglu"}, "hidden_act 'geglu' is not one that neojax has"),
    "positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    "decoder": ({"is_decoder": True}, "is_decoder=true is not supported"),
    "class": ({"architectures": ["BertForQuestionAnswer"]}, "did you mean BertForQuestionAnswering"),
    "count of labels": ({"id2label": {"0": "a"}, "num_labels": 2}, "names 1 classes, but num_labels is 2"),
    "gap": ({"id2label": {"0": "a", "2": "b"}}, r"id2label has the numbers \[0, 2\]; expected 0 to 1"),
    "two maps": ({"id2label": {"0": "a"}, "label2id": {"b": 0}}, "label2id gives 'b' the number 0"),
    "same names": ({"id2label": {"0": "a", "1": "a"}, "label2id": None}, r"head\.labels=.* each once"),
    "shape": (
        {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a"}, "label2id": None},
        r"classifier\.bias has shape \[2\], but by config.json it has \[1\] \(the labels",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_in_one_line(name, saved):
    _, folder = saved
    keys, message = BAD[name]
    configure(folder, **keys)
    tensors = {"classifier.weight": np.zeros((2, 24), "f4"), "classifier.bias": np.zeros(2, "f4")}
    edit(folder, lambda held: {**held, **tensors})
    with pytest.raises(NeojaxError, match=message) as e:
        hf.load(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("key, value", [("n_layer", 2), ("n_vocab", 60)])
def test_weights_of_another_shape_than_the_configuration_begin_no_run(key, value, original):
    model, folder = original
    with pytest.raises(NeojaxError, match=r"parameter \S+ is \(.* there but \(.* in this configuration"):
        load_params(folder, Transformer(replaced(model.config, key, value)))


def test_heads_that_transformers_has_no_class_for_are_not_exported():
    with pytest.raises(NeojaxError, match=r"head\.kinds=\['pair'\] cannot be exported: transformers' albert"):
        to_json(model_config(family="albert", **{"head.kinds": ["pair"]}))
    with pytest.raises(NeojaxError, match=r"head\.kinds.*a gpt2 has lm, or one of"):
        model_config(family="gpt2", **{"head.kinds": ["mlm"]})
    with pytest.raises(NeojaxError, match=r"layer_groups=2 times model\.inner_layers=1"):
        model_config(family="albert", n_layer=3, layer_groups=2)


def test_a_checkpoint_of_google_is_read_with_its_moments(tmp_path):
    """BERT and ALBERT, by the names and shapes that their programs give; ALBERT as TF-Hub prefixes it."""
    for family, folder in (("bert", tmp_path / "bert"), ("albert", tmp_path / "albert")):
        model = encoder(family)
        hf.save(model, folder / "hf")
        variables = as_google(load_file(folder / "hf" / hf.WEIGHTS), family)
        if family == "bert":
            slots = {f"{name}/adam_{m}": value + 1 for name, value in variables.items() for m in "mv"}
            variables |= {**slots, "global_step": np.int64(7)}
        write(folder / f"{family}_model.ckpt", variables, shards=2)
        raw = json.loads((folder / "hf" / "config.json").read_text())
        kept = {key: raw[key] for key in raw if key not in ("architectures", "model_type", "layer_norm_eps")}
        (folder / f"{family}_config.json").write_text(json.dumps({**kept, "hidden_act": "gelu"}))
        loaded = google_bert.load(folder)
        assert loaded.model.config == replaced(model.config, "mlp.activation", "gelu_new")
        rows = {
            name: np.asarray(value)[: len(model.params()[name])]
            for name, value in loaded.model.params().items()
        }
        assert_same(model, rows)
        assert loaded.step == (7 if family == "bert" else 0)
        assert loaded.keeps_moments == (family == "bert")
        if family == "bert":
            moment = np.asarray(loaded.moments["mu"]["pooler.weight"])
            np.testing.assert_array_equal(moment, model.params()["pooler.weight"] + 1)


def as_google(tensors, family):
    """The tensors of transformers under Google's names: a kernel is the transpose of a weight."""
    renamed = {}
    for name, value in tensors.items():
        own = name.removeprefix(f"{family}.")
        if own in ("cls.seq_relationship.weight", "sop_classifier.classifier.weight"):
            renamed["cls/seq_relationship/output_weights"] = value
            continue
        if own in ("cls.seq_relationship.bias", "sop_classifier.classifier.bias"):
            renamed["cls/seq_relationship/output_bias"] = value
            continue
        if own.endswith("predictions.bias"):
            renamed["cls/predictions/output_bias"] = value
            continue
        own = own.removeprefix("cls.").replace("encoder.layer.", "encoder.layer_")
        if own.startswith("predictions."):
            own = "cls." + (
                own if "transform" in own else own.replace("predictions", "predictions.transform")
            )
        else:
            own = "bert." + own
        for old, new in (
            ("encoder.albert_layer_groups.", "encoder.transformer.group_"),
            (".albert_layers.", ".inner_group_"),
            ("full_layer_layer_norm", "LayerNorm_1"),
            ("ffn_output", "ffn_1.intermediate.output.dense"),
            ("ffn.", "ffn_1.intermediate.dense."),
            ("attention.LayerNorm" if family == "albert" else "-", "LayerNorm"),
            ("pooler.weight", "pooler.dense.weight"),
            ("pooler.bias", "pooler.dense.bias"),
        ):
            own = own.replace(old, new)
        if family == "albert":
            for part in ("query", "key", "value"):
                own = own.replace(f"attention.{part}.", f"attention_1.self.{part}.")
            own = own.replace("attention.dense.", "attention_1.output.dense.")
        if "LayerNorm" in own:
            own = own.replace("weight", "gamma").replace("bias", "beta")
        elif own.endswith("_embeddings.weight"):
            own = own.removesuffix(".weight")
        elif own.endswith("weight"):
            own, value = own.removesuffix("weight") + "kernel", value.T
        renamed[own.replace(".", "/")] = value
    prefix = "module/" if family == "albert" else ""
    return {prefix + name: np.ascontiguousarray(value) for name, value in renamed.items()}
