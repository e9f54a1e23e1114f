"""GPT-2's tokenizer from either of its forms gives the published ids, here and in transformers after an
export."""

import json
import shutil

import pytest
from helpers import tiny

from neojax.convert import hf
from neojax.convert.hf_tokenizer import read_eos_token_id, read_tokenizer, write_tokenizer
from neojax.data import tokenizer as tokenizers
from neojax.data.special_tokens import SpecialTokens
from neojax.errors import NeojaxError
from neojax.models import Transformer

# OpenAI's encoder; the first and third also stand in transformers' documentation.
PUBLISHED = {
    "Hello world": [15496, 995],
    " Hello world": [18435, 995],
    "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
    "The quick brown fox jumps over the lazy dog": [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290],
    "<|endoftext|>": [50256],
    "\n": [198],
}


@pytest.fixture(params=["tokenizer.json", "vocab.json", "encoder.json"])
def folder(request, shared_data, tmp_path):
    """GPT-2's tokenizer in each of the forms it is found in."""
    source = shared_data / "gpt2-tokenizer"
    pairs = {
        "tokenizer.json": [("tokenizer.json", "tokenizer.json")],
        "vocab.json": [("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")],
        "encoder.json": [("encoder.json", "encoder.json"), ("vocab.bpe", "vocab.bpe")],
    }
    for old, new in pairs[request.param]:
        shutil.copy(source / old, tmp_path / new)
    return tmp_path


@pytest.mark.parametrize("types", [False, True])
def test_transformers_tells_a_second_text_apart_where_the_model_does(types, tmp_path):
    """Of a model that does not, GPT-Neo's would take types for tokens."""
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.train(["so it is and was"] * 3, 60, "wordpiece")
    write_tokenizer(tokenizer, tmp_path, 16, None, token_types=types)
    given = transformers.AutoTokenizer.from_pretrained(tmp_path)("so it", "is")
    expected = [0] * (2 + given["input_ids"].index(tokenizer.token_to_id("[SEP]")) - 1) + [1] * 2
    assert given.get("token_type_ids") == (expected if types else None)


def test_ids_are_the_published_ones(folder):
    tokenizer = read_tokenizer(folder)
    assert {text: tokenizer.encode(text).ids for text in PUBLISHED} == PUBLISHED


def test_awkward_unicode_comes_back(folder, shared_data):
    tokenizer = read_tokenizer(folder)
    text = (shared_data / "archives" / "blns.txt").read_text(encoding="utf-8")
    for piece in (text, *text.splitlines()):
        assert tokenizer.decode(tokenizer.encode(piece).ids, skip_special_tokens=False) == piece


def test_transformers_loads_the_exported_tokenizer(folder, shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = Transformer(tiny(n_vocab=50257, n_embd=4, n_layer=2)).init()
    model.tokenizer, model.eos_token_id = read_tokenizer(folder), 50256
    hf.save(model, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {text: theirs(text)["input_ids"] for text in PUBLISHED} == PUBLISHED
    assert (theirs.eos_token, theirs.eos_token_id, theirs.model_max_length) == ("<|endoftext|>", 50256, 24)
    text = (shared_data / "archives" / "blns.txt").read_text(encoding="utf-8")
    assert theirs(text)["input_ids"] == model.tokenizer.encode(text).ids
    again = hf.load(tmp_path / "out")
    assert again.tokenizer.encode("Hello world").ids == [15496, 995]
    assert again.eos_token_id == 50256


def test_no_tokenizer_is_none(tmp_path):
    assert read_tokenizer(tmp_path) is None


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "merges.txt").write_text("a b\n")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(NeojaxError, match=r"vocab\.json and .*merges\.txt are not a byte-level BPE"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a"')
    with pytest.raises(NeojaxError, match=r"vocab\.json is not valid JSON"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(NeojaxError, match=r"tokenizer\.json is not a tokenizer\.json"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(shared_data, tmp_path):
    hf.save(Transformer(tiny()).init(), tmp_path / "model")
    shutil.copy(shared_data / "gpt2-tokenizer" / "tokenizer.json", tmp_path / "model")
    with pytest.raises(NeojaxError, match=r"tokenizer has 50257 ids but config\.json has vocab_size=61"):
        hf.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [({"eos_token_id": [7, 8]}, 3, 7), ({}, 3, 3), (None, 3, 3), (None, None, None)],
)
def test_the_end_token_is_that_of_generation_then_of_the_model(generation, config, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_eos_token_id(tmp_path) == expected


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_transformers_loads_an_exported_encoder_tokenizer_with_its_roles(kind, shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    file = {"bert": "bert-uncased.vocab.txt", "albert": "albert-30k-clean.spiece.model"}[kind]
    ours = tokenizers.load(shared_data / "tokenizers" / file)
    write_tokenizer(ours, tmp_path, 128, None)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    row = theirs("Paris is the [MASK] of France.", "Yes, naïve.", return_token_type_ids=True)
    own = ours.encode("Paris is the [MASK] of France.", "Yes, naïve.")
    assert (row["input_ids"], row["token_type_ids"]) == (own.ids, own.type_ids)
    special = SpecialTokens.of(ours)
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (
        special.cls, special.sep, special.mask
    )  # fmt: skip
    assert (theirs.pad_token_id, theirs.unk_token_id) == (special.pad, special.unk)
