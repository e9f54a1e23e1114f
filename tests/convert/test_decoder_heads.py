"""Decoders with heads for classes say what transformers' do, on one device and on a split mesh; what is
saved is what was read; and one that predicts tokens lends its weights."""

import warnings

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from helpers import layout_of
from hf_reference import N_VOCAB, filled, gpt2, gpt_j, gpt_neo, gpt_neox, llama
from safetensors.numpy import load_file

import neojax
from neojax.config import from_dict, to_dict
from neojax.convert import hf
from neojax.data.batch import Batch
from neojax.errors import NeojaxError
from neojax.loading import load_params
from neojax.models import Transformer

LENGTH, LABELS, PAD = 11, 3, 0
SPLIT = ("data:2, model:2", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")
MAKE = {
    "GPTNeo": lambda: gpt_neo([[["global", "local"], 1]]),
    "GPTNeoX": gpt_neox,
    "GPT2": gpt2,
    "GPTJ": gpt_j,
    "Llama": llama,
}
TRIED = [
    ("GPTNeoForSequenceClassification", SPLIT),
    ("GPTNeoXForTokenClassification", ("data:1",)),
    ("GPT2ForQuestionAnswering", ("data:1",)),
    ("LlamaForSequenceClassification", ("data:1",)),
    ("LlamaForQuestionAnswering", ("data:1",)),
]
SAVED = (
    *(name for name, _ in TRIED),
    "GPTNeoForTokenClassification",
    "GPTNeoForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForQuestionAnswering",
    "GPT2ForSequenceClassification",
    "GPTJForSequenceClassification",
    "GPTJForQuestionAnswering",
    "LlamaForTokenClassification",
    "LlamaForQuestionAnswering",
)


def made(name):
    """The model of transformers of that class."""
    config = MAKE[name.partition("For")[0]]().config
    config.num_labels = 2 if "Answering" in name else LABELS
    config.pad_token_id, config.classifier_dropout = PAD, 0.0
    return filled(getattr(transformers, name), config)


def rows(name):
    """A batch with padding on the right, and what is scored of it."""
    rng = np.random.default_rng(0)
    there = np.ones((4, LENGTH), np.int32)
    if "Answering" not in name:  # of which transformers' loss is over padding too
        there[1, 7:], there[2, 1:] = 0, 0
    tokens = np.where(there, rng.integers(1, N_VOCAB, there.shape), PAD)
    batch = Batch(tokens, np.full(there.shape, -1), segments=there)
    if "Token" in name:
        scored = (rng.uniform(size=there.shape) < 0.5) & (there > 0)
        batch = batch._replace(targets=np.where(scored, rng.integers(0, LABELS, there.shape), -1))
    elif "Answering" in name:
        batch = batch._replace(labels=np.array([[0, 3], [2, 6], [0, 0], [5, 10]]))
    else:
        batch = batch._replace(labels=np.array([0, 2, 1, 1]))
    return jax.tree.map(lambda x: x.astype(np.int32), batch)


def theirs(model, name, batch):
    """(logits, loss) of transformers."""
    given = {"input_ids": batch.tokens, "attention_mask": batch.segments}
    if "Answering" in name:
        given |= {"start_positions": batch.labels[:, 0], "end_positions": batch.labels[:, 1]}
    else:
        given["labels"] = (
            np.where(batch.targets < 0, -100, batch.targets) if "Token" in name else batch.labels
        )
    out = model(**{key: torch.tensor(value, dtype=torch.long) for key, value in given.items()})
    logits = torch.stack([out.start_logits, out.end_logits], -1) if "Answering" in name else out.logits
    return logits.detach().numpy(), out.loss


@pytest.mark.parametrize(("name", "layout"), TRIED)
def test_outputs_and_gradients_are_those_of_transformers(name, layout, tmp_path):
    torch_model, batch = made(name), rows(name)
    torch_model.save_pretrained(tmp_path / "in")
    found, loss = theirs(torch_model, name, batch)
    loss.backward()
    gradients = {key: p.grad.numpy().copy() for key, p in torch_model.named_parameters()}
    exact, _ = theirs(torch_model.double(), name, batch)
    model = hf.load(tmp_path / "in", layout_of(*layout))

    @jax.jit
    def run(params):
        def total(params):
            bound = model.bind(params)
            losses = bound.loss(batch)
            return losses.total() / losses.scored, bound(batch.tokens, segments=batch.segments)

        return jax.value_and_grad(total, has_aux=True)(params)

    with jax.set_mesh(model.layout.mesh):
        (objective, ours), grads = run(model.params())
    assert float(objective) == pytest.approx(loss.item(), rel=1e-5)
    ours, near = np.asarray(ours), found
    if ours.ndim > 2:
        real = batch.segments > 0
        ours, near, exact = ours[real], near[real], exact[real]
    limit = max(3 * np.abs(near - exact).max(), 3e-6 * np.abs(exact).max())
    assert np.abs(ours - exact).max() <= limit
    hf.save(model.bind(grads), tmp_path / "gradients")  # so that they get transformers' names
    ours = load_file(tmp_path / "gradients" / hf.WEIGHTS)
    assert ours.keys() == gradients.keys()
    most = max(np.abs(grad).max() for grad in gradients.values())
    for key, grad in gradients.items():
        limit = max(1e-4 * np.abs(grad).max(), 1e-6 * most)
        np.testing.assert_allclose(ours[key], grad, atol=limit, rtol=0, err_msg=key)


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_is_what_transformers_had(name, tmp_path):
    made(name).save_pretrained(tmp_path / "in")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every tensor has its place
        model = hf.load(tmp_path / "in")
    model.eos_token_id = PAD
    hf.save(model, tmp_path / "out")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("in", "out"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key], err_msg=key)
    old, new = (transformers.AutoConfig.from_pretrained(tmp_path / side).to_dict() for side in ("in", "out"))
    for key in ("architectures", "id2label", "pad_token_id"):
        assert old[key] == new[key]


def test_a_model_of_the_next_token_lends_its_weights_to_a_classifier(tmp_path):
    gpt_neox().save_pretrained(tmp_path / "lm")
    there = to_dict(hf.read_config(tmp_path / "lm"))
    there["head"] = {"kinds": ["sequence_classification"], "labels": ["a", "b"]}
    model = Transformer(from_dict({"model": there}).model)
    with pytest.warns(UserWarning, match=r"has no score.weight, which begin.* holds embed_out.weight, for"):
        params = load_params(tmp_path / "lm", model)
    assert params.keys() == model.stored().keys() and "score.weight" in params
    table = load_file(tmp_path / "lm" / "model.safetensors")["gpt_neox.embed_in.weight"]
    np.testing.assert_array_equal(np.asarray(params["wte"])[:N_VOCAB], table)


def test_a_llama_lends_its_weights_to_a_class_with_another_prefix(tmp_path):
    """transformers keeps a LlamaForQuestionAnswering below transformer, other classes below model."""
    llama().save_pretrained(tmp_path / "lm")
    there = to_dict(hf.read_config(tmp_path / "lm"))
    there["head"] = {"kinds": ["question_answering"]}
    model = Transformer(from_dict({"model": there}).model)
    with pytest.warns(UserWarning, match="has no qa_outputs.bias, qa_outputs.weight, which begin at random"):
        params = load_params(tmp_path / "lm", model)
    hf.save(model.bind(params), tmp_path / "qa")
    tables = (
        load_file(tmp_path / "lm" / "model.safetensors"),
        load_file(tmp_path / "qa" / "model.safetensors"),
    )
    (name,) = (name for name in tables[1] if name.endswith("layers.1.mlp.up_proj.weight"))
    assert name.startswith("transformer.")
    np.testing.assert_array_equal(tables[1][name], tables[0]["model.layers.1.mlp.up_proj.weight"])


def test_a_classifier_does_not_continue_texts(tmp_path):
    made("GPT2ForSequenceClassification").save_pretrained(tmp_path)
    model = neojax.load(tmp_path)
    with pytest.raises(NeojaxError, match=r"this model cannot .* but says something of it"):
        neojax.generate(model, [[1, 2]], max_new_tokens=2)
    with pytest.raises(NeojaxError, match=r"a gpt2 has lm, or one of sequence_classification"):
        from_dict({"model": {"family": "gpt2", "head": {"kinds": ["pair"]}}})
    assert from_dict({"model": {"head": {"kinds": ["multiple_choice"]}}}).model.head.kinds
