"""BERT and ALBERT of transformers compute the same here, heads, hidden states and gradients, on one device
and on a split mesh; and what is saved is what was read."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from helpers import layout_of
from hf_reference import N_VOCAB, albert, bert
from safetensors.numpy import load_file

import neojax
from neojax.convert import hf
from neojax.data.batch import Batch

LAYOUTS = {
    "one device": ("data:1", "", ""),
    "split": (
        "data:2, model:4",
        "batch:data, heads:model, mlp:model, vocab:model",
        "embd:data",
    ),
}
LENGTH, CHOICES, LABELS = 13, 3, 3
CASES = {
    "BertForPreTraining": {},
    "BertForMaskedLM": {"tie_word_embeddings": False, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    "BertForSequenceClassification": {"num_labels": LABELS},
    "BertForQuestionAnswering": {},
    "AlbertForPreTraining": {},
    "AlbertForMaskedLM": {"tie_word_embeddings": False, "num_hidden_groups": 1, "inner_group_num": 1},
    "AlbertForTokenClassification": {"num_labels": LABELS, "num_hidden_groups": 1, "inner_group_num": 1},
    "AlbertForMultipleChoice": {"num_hidden_groups": 1, "inner_group_num": 1, "hidden_act": "gelu"},
}
# A split changes nothing about the other variations.
TRIED = [
    ("BertForPreTraining", "one device"),
    ("BertForMaskedLM", "one device"),
    ("BertForSequenceClassification", "one device"),
    ("AlbertForTokenClassification", "one device"),
    ("BertForQuestionAnswering", "split"),
    ("AlbertForPreTraining", "split"),
    ("AlbertForMultipleChoice", "split"),
]
SAVED = (
    *CASES,
    "BertModel",
    "BertForNextSentencePrediction",
    "BertForTokenClassification",
    "BertForMultipleChoice",
    "AlbertModel",
    "AlbertForSequenceClassification",
    "AlbertForQuestionAnswering",
)


def made(name):
    """The model of transformers of that class."""
    make = bert if name.startswith("Bert") else albert
    return make(getattr(transformers, name), **CASES.get(name, {}))


def rows(name):
    """A batch at the limit of the context, with padding, and with what is scored of it."""
    rng = np.random.default_rng(0)
    shape = (4, CHOICES, LENGTH) if "Choice" in name else (4, LENGTH)
    there = np.ones(shape, np.int32)
    there[1, ..., 9:], there[2, ..., 1:] = 0, 0
    tokens = rng.integers(1, N_VOCAB, shape)  # padding as well: transformers trains no row of its own padding
    types = rng.integers(0, 3, shape) * there
    batch = Batch(tokens, np.full(shape, -1), segments=there, token_types=types)
    if "PreTraining" in name or "MaskedLM" in name or "Token" in name:
        most = LABELS if "Token" in name else N_VOCAB
        scored = (rng.uniform(size=shape) < 0.4) & (there > 0)
        batch = batch._replace(targets=np.where(scored, rng.integers(0, most, shape), -1))
    if "PreTraining" in name:
        batch = batch._replace(labels=np.array([0, 1, 1, 0]))
    if "Sequence" in name or "Choice" in name:
        batch = batch._replace(labels=np.array([0, 2, 1, 1]))
    if "Answering" in name:
        batch = batch._replace(labels=np.array([[0, 3], [2, 8], [0, 0], [5, 12]]))
    return jax.tree.map(lambda x: x.astype(np.int32), batch)


def theirs(model, name, batch):
    """(outputs of transformers by our names, its loss)."""
    given = {"input_ids": batch.tokens, "token_type_ids": batch.token_types, "attention_mask": batch.segments}
    if "Answering" in name:
        given |= {"start_positions": batch.labels[:, 0], "end_positions": batch.labels[:, 1]}
    elif "PreTraining" in name:
        label = "next_sentence_label" if name.startswith("Bert") else "sentence_order_label"
        given |= {label: batch.labels, "labels": np.where(batch.targets < 0, -100, batch.targets)}
    elif batch.labels is not None:
        given["labels"] = batch.labels
    else:
        given["labels"] = np.where(batch.targets < 0, -100, batch.targets)
    given = {key: torch.tensor(value, dtype=torch.long) for key, value in given.items()}
    out = model(**given, output_hidden_states=True)
    found = {"hidden": out.hidden_states[-1]}
    if "Answering" in name:
        found["question_answering"] = torch.stack([out.start_logits, out.end_logits], -1)
    elif "PreTraining" in name:
        pair = out.seq_relationship_logits if name.startswith("Bert") else out.sop_logits
        found |= {"mlm": out.prediction_logits, "pair": pair}
    else:
        found["only"] = out.logits
    return {key: value.detach().numpy() for key, value in found.items()}, loss_of(out, name, batch)


def loss_of(out, name, batch):
    """The loss of transformers; of answers, without the padding over which its own goes too."""
    if "Answering" not in name:
        return out.loss
    padding, labels = torch.tensor(batch.segments == 0), torch.tensor(batch.labels, dtype=torch.long)
    sides = zip((out.start_logits, out.end_logits), labels.T)
    losses = [torch.nn.functional.cross_entropy(x.masked_fill(padding, -1e9), y) for x, y in sides]
    return sum(losses) / 2


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """A model of transformers, where it is saved, its batch, and outputs in float32 and float64."""
    name = request.param
    model, batch = made(name), rows(name)
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    found, loss = theirs(model, name, batch)
    loss.backward()
    gradients = {key: p.grad.numpy().copy() for key, p in model.named_parameters() if p.grad is not None}
    exact, _ = theirs(model.double(), name, batch)
    return name, folder, batch, found, exact, loss.item(), gradients


@pytest.mark.parametrize(("case", "layout"), TRIED, indirect=["case"])
def test_outputs_and_gradients_are_those_of_transformers(case, layout, tmp_path):
    """Outputs are as near to its float64 as its own float32 is, gradients to its float32's."""
    name, folder, batch, found, exact, loss, gradients = case
    model = hf.load(folder, layout_of(*LAYOUTS[layout]))

    @jax.jit
    def run(params):
        def total(params):
            bound = model.bind(params)
            losses = bound.loss(batch)
            return losses.total() / losses.scored, bound.outputs(
                batch.tokens, segments=batch.segments, token_types=batch.token_types
            )

        return jax.value_and_grad(total, has_aux=True)(params)

    with jax.set_mesh(model.layout.mesh):
        (objective, ours), grads = run(model.params())
    assert abs(float(objective) - loss) < 1e-5 * abs(loss)
    real = batch.segments.reshape(-1, LENGTH) > 0
    for key, value in exact.items():
        own = np.asarray(ours[model.config.head.kinds[0] if key == "only" else key])
        near = found[key]
        if own.shape[:2] == real.shape:
            own, near, value = own[real], near.reshape(own.shape)[real], value.reshape(own.shape)[real]
        limit = max(3 * np.abs(near - value).max(), 3e-6 * np.abs(value).max())
        assert np.abs(own - value).max() <= limit, key
    hf.save(model.bind(grads), tmp_path / "gradients")  # so that they get transformers' names
    ours = load_file(tmp_path / "gradients" / hf.WEIGHTS)
    most = max(np.abs(grad).max() for grad in gradients.values())
    for key, grad in gradients.items():  # those of biases that a softmax takes out are 0 but for rounding
        limit = max(1e-4 * np.abs(grad).max(), 1e-6 * most)
        np.testing.assert_allclose(ours.pop(key), grad, atol=limit, rtol=0, err_msg=key)
    unused = {key for key in ours if key.endswith("predictions.bias")}  # by transformers, see below
    assert ours.keys() == unused and bool(unused) == ("MaskedLM" in name)


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_is_what_transformers_had(name, tmp_path):
    made(name).save_pretrained(tmp_path / "in")
    before = load_file(tmp_path / "in" / "model.safetensors")
    hf.save(hf.load(tmp_path / "in"), tmp_path / "out")
    after = load_file(tmp_path / "out" / hf.WEIGHTS)
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key.endswith("predictions.bias") and key.replace("bias", "decoder.bias") in before:
            # That which transformers adds where the table is not the embedding; it does not use the other.
            key = key.replace("bias", "decoder.bias")
            value = before[key]
        np.testing.assert_array_equal(value, after[key], err_msg=key)
    old, new = (transformers.AutoConfig.from_pretrained(tmp_path / side).to_dict() for side in ("in", "out"))
    differing = {key for key in {*old, *new} if old.get(key) != new.get(key)}
    assert differing <= {"transformers_version", "_name_or_path", "classifier_dropout"}
    assert old["architectures"] == [name]


def test_a_loaded_model_gives_the_logits_of_its_first_head(tmp_path):
    """In the form for inference, on a mesh, by the public call; unequal rows and ids are refused."""
    name = "AlbertForPreTraining"
    made(name).save_pretrained(tmp_path)
    batch, mesh = rows(name), neojax.config.MeshConfig(shape="data:2, model:4", layout=LAYOUTS["split"][1])
    model = neojax.load(tmp_path, mesh=mesh)
    given = {"segments": batch.segments, "token_types": batch.token_types}
    logits = model(batch.tokens, **given)
    assert logits.shape == (4, LENGTH, N_VOCAB)
    expected, _ = theirs(made(name), name, batch)
    real = batch.segments > 0
    np.testing.assert_allclose(np.asarray(logits)[real], expected["mlm"][real], atol=1e-4)
    with pytest.raises(neojax.NeojaxError, match=r"token_types: token 3 is not in the vocabulary, 0 to 2"):
        model(batch.tokens, token_types=batch.segments * 3)
    with pytest.raises(neojax.NeojaxError, match=r"segments have shape \[4, 2\]; expected .* \[4, 13\]"):
        model(batch.tokens, segments=batch.segments[:, :2])
    with pytest.raises(neojax.NeojaxError, match=r"model\.causal is false: .* cannot"):
        neojax.generate(model, [[1, 2]])
