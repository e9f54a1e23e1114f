"""Weights of transformers compute the same here: logits, gradients and greedy continuations, on every layout."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from helpers import layout_of
from hf_reference import batch, gpt2, gpt_neo
from safetensors.numpy import load_file

from neojax.convert import hf

MODEL = "batch:data, heads:model, mlp:model, vocab:model"
LAYOUTS = {
    "one device": ("data:1", "", ""),
    "model": ("data:2, model:4", MODEL, ""),
    "fsdp": ("data:2, model:4", MODEL, "embd:data"),
}
CASES = {
    "alternating": lambda: gpt_neo([[["global", "local"], 2]]),
    "odd widths": lambda: gpt_neo(
        [[["global", "local"], 1]], hidden_size=36, intermediate_size=20, max_position_embeddings=23
    ),
    "window of 256": lambda: gpt_neo(
        [[["local", "global"], 1]], hidden_size=16, window_size=256, max_position_embeddings=300
    ),
    "irregular": lambda: gpt_neo([[["global"], 1], [["local"], 2]], activation_function="gelu"),
    "all local": lambda: gpt_neo([[["local"], 3]], window_size=5, layer_norm_epsilon=1e-3),
    "untied": lambda: gpt_neo([[["global", "local"], 1]], tie_word_embeddings=False),
    "gpt2": gpt2,
    "gpt2, odd": lambda: gpt2(n_embd=20, n_inner=12, activation_function="relu", scale_attn_weights=False),
    "gpt2, untied": lambda: gpt2(n_layer=2, tie_word_embeddings=False),
}


# The layouts beside one device that a case is tried on; a split changes nothing about the other variations.
SPLIT_CASES = {
    "alternating": ("model", "fsdp"),
    "window of 256": ("fsdp",),
    "untied": ("fsdp",),
    "gpt2": ("model", "fsdp"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """The name of a case, a model of transformers, the directory it is saved in, and its tokens, logits and gradients."""
    model = CASES[request.param]()
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    tokens = batch(model)
    ids = torch.tensor(tokens, dtype=torch.long)
    out = model(ids, labels=ids)
    out.loss.backward()
    return request.param, model, folder, tokens, out.logits.detach().numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_and_gradients_are_those_of_transformers(case, layout, tmp_path):
    name, reference, folder, tokens, logits = case
    if layout not in ("one device", *SPLIT_CASES.get(name, ())):
        pytest.skip("one device is enough for this variation")
    model = hf.load(folder, layout_of(*LAYOUTS[layout]))
    targets = np.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=-1)

    @jax.jit
    def run(params):
        def loss(params):
            bound = model.bind(params)
            _, nll, scored = bound.loss(tokens, targets)
            return nll / scored, bound.logits(bound.hidden(tokens)[0])

        return jax.grad(loss, has_aux=True)(params)

    gradients, ours = run(model.params())
    np.testing.assert_allclose(np.asarray(ours)[..., : logits.shape[-1]], logits, atol=1e-4, rtol=0)
    hf.save(model.bind(gradients), tmp_path / "gradients")  # so that they get transformers' names
    ours = load_file(tmp_path / "gradients" / hf.WEIGHTS)
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        np.testing.assert_allclose(ours[name], grad, atol=1e-4 * np.abs(grad).max(), rtol=0, err_msg=name)


def test_what_is_saved_is_what_transformers_had(case, tmp_path):
    """Through a padded, split model and files of several shards."""
    from transformers import AutoModelForCausalLM

    _, reference, folder, tokens, logits = case
    model = hf.load(folder, layout_of(*LAYOUTS["fsdp"]))
    hf.save(model, tmp_path / "out", max_shard_size=20_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    before, after = reference.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    with torch.no_grad():
        got = again(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_array_equal(got, logits)
