"""Fillings of encoders are those of transformers' fill-mask, on one device and on a mesh."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers import layout_of
from transformers import (
    AlbertForMaskedLM,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    pipeline,
)

import neojax
from neojax.convert import hf
from neojax.data.tokenizer import train

sys.path.insert(0, str(Path(__file__).parent.parent / "convert"))  # also where that folder is not collected
from hf_reference import N_VOCAB, albert, bert

CASES = {
    "bert": (lambda: bert(BertForMaskedLM), ("data:2, model:4", "batch:data, heads:model, vocab:model", "")),
    "albert": (lambda: albert(AlbertForMaskedLM), ("data:1", "", "")),
}
TEXTS = ["The [MASK] sat", "a cat", "[MASK][MASK] on a mat, [MASK]"]


@pytest.mark.parametrize("name", CASES)
def test_fillings_are_those_of_transformers(name, tmp_path):
    make, mesh = CASES[name]
    make().save_pretrained(tmp_path)
    train(["the cat sat on a mat, the dog sat on the cat"], N_VOCAB, "wordpiece").save(
        str(tmp_path / "tokenizer.json")
    )
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    theirs = pipeline(
        "fill-mask",
        AutoModelForMaskedLM.from_pretrained(tmp_path),
        tokenizer=PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **special),
        top_k=4,
    )
    model = hf.load(tmp_path, layout_of(*mesh))
    texts = [text for text in TEXTS if "[MASK]" in text]
    for text, filled in zip(texts, neojax.fill_mask(model, texts, top_k=4), strict=True):
        expected = theirs(text)
        expected = [expected] if text.count("[MASK]") == 1 else expected
        assert filled.text == text and len(filled.masks) == len(expected)
        for ours, own in zip(filled.masks, expected, strict=True):
            assert [f.token for f in ours] == [each["token"] for each in own]
            assert [f.text for f in ours] == [each["token_str"] for each in own]
            np.testing.assert_allclose([f.probability for f in ours], [e["score"] for e in own], rtol=1e-4)
            if len(expected) == 1:
                assert [f.filled for f in ours] == [each["sequence"] for each in own]
            assert filled.masks[0][0].filled == ours[0].filled  # the likeliest in every place
    with pytest.raises(neojax.NeojaxError, match=r"text 2 has no mask; write \[MASK\]"):
        neojax.fill_mask(model, TEXTS)
    with pytest.raises(neojax.NeojaxError, match=r"text 1 has \d+ tokens, more than the context of 13"):
        neojax.fill_mask(model, ["[MASK] the cat sat on the mat the cat sat on the mat"])
