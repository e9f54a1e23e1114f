"""Greedy text is token for token that of transformers' `generate`, and the filters are its warpers."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from helpers import layout_of
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from neojax.convert import hf
from neojax.sampling.generate import generate
from neojax.sampling.logits import Controls, penalise, warp

sys.path.insert(0, str(Path(__file__).parent.parent / "convert"))  # also where that folder is not collected
from hf_reference import gpt2, gpt_j, gpt_neo, gpt_neox

CASES = {
    "alternating": lambda: gpt_neo([[["global", "local"], 1]]),
    "irregular": lambda: gpt_neo([[["global"], 1], [["local"], 2]], window_size=5, hidden_size=36),
    "gpt2": gpt2,
    "neox": gpt_neox,
    "gpt_j": gpt_j,
}
LAYOUTS = {
    "one device": ("data:1", "", ""),
    "split": ("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data"),
}
PROMPTS = [[1, 2, 3], [5, 9, 11, 40, 2, 2, 17, 31, 8], [52]]  # one is longer than the windows


@pytest.mark.parametrize(
    "case, layout",
    [
        ("alternating", "one device"),
        ("alternating", "split"),
        ("irregular", "one device"),
        ("gpt2", "split"),
        ("neox", "split"),
        ("gpt_j", "one device"),
    ],
)
def test_greedy_text_is_that_of_transformers(case, layout, tmp_path):
    reference = CASES[case]()
    reference.save_pretrained(tmp_path)
    reference.generation_config.eos_token_id = None
    expected = []
    for prompt in PROMPTS:
        out = reference.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0, use_cache=True
        )
        expected.append(out[0, len(prompt) :].tolist())
    model = hf.load(tmp_path, layout_of(*LAYOUTS[layout]))
    assert generate(model, PROMPTS, max_new_tokens=20, temperature=0, eos=()) == expected


def test_filters_are_the_warpers_of_transformers():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 53)).astype(np.float32) * 3
    tokens = rng.integers(0, 53, (6, 9))
    for temperature, k, p, least in (
        (0.7, 12, 1.0, 0.0),
        (1.5, 0, 0.6, 0.0),
        (1.0, 0, 1.0, 0.1),
        (0.9, 20, 0.8, 0.05),
    ):
        chain = [RepetitionPenaltyLogitsProcessor(1.4), TemperatureLogitsWarper(temperature)]
        chain += [TopKLogitsWarper(k)] if k else []
        chain += [TopPLogitsWarper(p)] if p < 1 else []
        chain += [MinPLogitsWarper(least)] if least else []
        expected = torch.tensor(logits)
        for each in chain:
            expected = each(torch.tensor(tokens), expected)
        present = np.zeros(logits.shape, bool)
        np.put_along_axis(present, tokens, True, axis=1)
        found = warp(penalise(logits, present, 1.4), Controls(temperature, k, p, least))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
