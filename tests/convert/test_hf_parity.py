"""Weights of transformers compute the same here, logits and gradients, on one device and on a split mesh."""

import json
from copy import deepcopy

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from helpers import layout_of
from hf_reference import batch, gpt2, gpt_j, gpt_neo, gpt_neox, llama
from safetensors.numpy import load_file
from transformers import AutoConfig

from neojax.config import from_dict
from neojax.convert import hf
from neojax.convert.hf_config import exported, read_config, to_json
from neojax.data.batch import Batch
from neojax.models.families import family

LAYOUTS = {
    "one device": ("data:1", "", ""),
    "split": ("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
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
    "neox": gpt_neox,
    "neox, sequential": lambda: gpt_neox(
        use_parallel_residual=False,
        hidden_act="gelu_new",
        layer_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
    ),
    "neox, no biases in attention": lambda: gpt_neox(attention_bias=False, num_hidden_layers=2),
    "gpt_j": gpt_j,
    "llama": llama,
    "llama, tied": lambda: llama(
        hidden_size=48,
        num_key_value_heads=None,
        head_dim=None,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=True,
        hidden_act="gelu",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "neox, tied": lambda: gpt_neox(hidden_size=48, tie_word_embeddings=True),
}


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """A model of transformers, the directory it is saved in, its tokens, and its logits in float32 and in
    float64."""
    model = CASES[request.param]()
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    tokens = batch(model)
    ids = torch.tensor(tokens, dtype=torch.long)
    out = model(ids, labels=ids)
    out.loss.backward()
    with torch.no_grad():
        exact = deepcopy(model).double()(ids).logits.numpy()
    return model, folder, tokens, out.logits.detach().numpy(), exact


# A split changes nothing about the other variations.
SPLIT = ("alternating", "window of 256", "untied", "gpt2", "neox", "neox, tied", "gpt_j", "llama")
TRIED = [*((name, "one device") for name in CASES), *((name, "split") for name in SPLIT)]


@pytest.mark.parametrize(("case", "layout"), TRIED, indirect=["case"])
def test_logits_and_gradients_are_those_of_transformers(case, layout, tmp_path):
    """Logits are as near to transformers' in float64 as its own in float32 are."""
    reference, folder, tokens, logits, exact = case
    model = hf.load(folder, layout_of(*LAYOUTS[layout]))
    targets = np.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=-1)

    @jax.jit
    def run(params):
        def loss(params):
            bound = model.bind(params)
            losses = bound.loss(Batch(tokens, targets))
            nll = losses.nats
            scored = losses.scored
            return nll / scored, bound.logits(bound.hidden(tokens)[0])

        return jax.grad(loss, has_aux=True)(params)

    gradients, ours = run(model.params())
    near = max(3 * np.abs(logits - exact).max(), 3e-6 * np.abs(exact).max())
    np.testing.assert_allclose(np.asarray(ours, "f8")[..., : logits.shape[-1]], exact, atol=near, rtol=0)
    hf.save(model.bind(gradients), tmp_path / "gradients")  # so that they get transformers' names
    ours = load_file(tmp_path / "gradients" / hf.WEIGHTS)
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    if "lm_head.weight" in theirs:  # called so in memory, but not in every family's files
        theirs[family(model.config.family).hugging_face.output] = theirs.pop("lm_head.weight")
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        np.testing.assert_allclose(ours[name], grad, atol=1e-4 * np.abs(grad).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_what_is_saved_is_what_transformers_had(case, tmp_path):
    """Through a padded, split model and files of several shards."""
    from transformers import AutoModelForCausalLM

    reference, folder, tokens, logits, _ = case
    model = hf.load(folder, layout_of(*LAYOUTS["split"]))
    hf.save(model, tmp_path / "out", max_shard_size=20_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    before, after = reference.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    with torch.no_grad():
        got = again(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_array_equal(got, logits)


@pytest.mark.parametrize("name", exported())
def test_transformers_opens_the_configuration_of_a_model_that_leaves_out_what_it_can(name, tmp_path):
    """It takes no null for the width of an MLP or for a rate of dropout."""
    model = from_dict({"model": {"family": name}}, ["model.head.dropout=null"]).model
    (tmp_path / "config.json").write_text(json.dumps(to_json(model)))
    AutoConfig.from_pretrained(tmp_path)
    again = read_config(tmp_path)
    assert (again.mlp_dim, again.head_dropout) == (model.mlp_dim, model.head_dropout)
