"""Tiny models that transformers saved compute what it computed, also where PyTorch is not installed."""

from pathlib import Path

import numpy as np
import pytest
from helpers import layout_of
from safetensors.numpy import load_file

from neojax.convert import hf
from neojax.sampling.generate import generate

RECORDED = Path(__file__).parent / "data" / "hf"  # by data/write_hf.py
LAYOUTS = {
    "one device": ("data:1", "", ""),
    "split": ("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
}
TRIED = [("gpt-neo", "one device"), ("gpt-neo", "split"), ("gpt2", "one device")]


@pytest.mark.parametrize("name, layout", TRIED)
def test_logits_and_greedy_text_are_those_that_transformers_computed(name, layout):
    expected = np.load(RECORDED / name / "expected.npz")
    model = hf.load(RECORDED / name, layout_of(*LAYOUTS[layout]))
    np.testing.assert_allclose(model(expected["tokens"]), expected["logits"], atol=1e-4, rtol=0)
    prompts = expected["tokens"][:, :5].tolist()
    assert generate(model, prompts, max_new_tokens=12, temperature=0, eos=()) == expected["greedy"].tolist()


@pytest.mark.parametrize("name", ["gpt-neo", "gpt2"])
def test_what_is_saved_is_the_directory_that_transformers_wrote(name, tmp_path):
    """Every tensor bit for bit, under its name."""
    hf.save(hf.load(RECORDED / name, layout_of(*LAYOUTS["split"])), tmp_path)
    ours, theirs = load_file(tmp_path / hf.WEIGHTS), load_file(RECORDED / name / hf.WEIGHTS)
    assert ours.keys() == theirs.keys()
    for tensor in theirs:
        np.testing.assert_array_equal(ours[tensor], theirs[tensor], err_msg=tensor)


@pytest.mark.parametrize("name", ["gpt-neo", "gpt2"])
def test_the_record_is_what_transformers_computes_today(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    expected = np.load(RECORDED / name / "expected.npz")
    model = transformers.AutoModelForCausalLM.from_pretrained(RECORDED / name, attn_implementation="eager")
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"], dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5, rtol=0)
