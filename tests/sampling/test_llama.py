"""Llama's texts are those of transformers: <s> before a prompt, up to the end of the context, padded."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from helpers import layout_of
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

import neojax
from neojax.convert import hf

sys.path.insert(0, str(Path(__file__).parent.parent / "convert"))  # also where that folder is not collected
from hf_reference import N_VOCAB, llama

TEXTS = ["the cat saw a dog", "a", "the dog sat on a mat and the cat sat by the dog"]
SPLIT = ("data:2, model:4", "batch:data, heads:model, mlp:model, vocab:model", "embd:data")


def sentencepiece_like() -> Tokenizer:
    """A BPE in the form in which Llama's SentencePiece models are kept as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=N_VOCAB, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", "<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A directory that neojax wrote after it read one of transformers, its model there and here, on a mesh
    where the heads of queries have more parts than there are heads of keys."""
    first, again = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("out") / "again"
    llama(bos_token_id=1, eos_token_id=2).save_pretrained(first)
    sentencepiece_like().save(str(first / "tokenizer.json"))
    model = hf.load(first, layout_of(*SPLIT))
    hf.save(model, again)
    return again, AutoModelForCausalLM.from_pretrained(again, attn_implementation="eager").eval(), model


def test_greedy_text_is_that_of_transformers_up_to_the_end_of_the_context(exported):
    folder, theirs, model = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert theirs.generation_config.bos_token_id == theirs.config.bos_token_id == 1
    theirs.generation_config.eos_token_id = None
    expected = []
    for text in TEXTS:
        prompt = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        assert prompt["input_ids"][0, 0] == 1
        room = theirs.config.max_position_embeddings - prompt["input_ids"].shape[1]
        out = theirs.generate(**prompt, do_sample=False, max_new_tokens=room, pad_token_id=0)[0]
        expected.append((out.tolist(), tokenizer.decode(out, skip_special_tokens=True)))
    samples = neojax.generate(
        model,
        TEXTS,
        sampling=[
            neojax.Sampling(temperature=0, eos=(), max_new_tokens=32 - len(model.tokenizer.encode(text)))
            for text in TEXTS
        ],
        return_samples=True,
    )
    for text, sample, (tokens, whole) in zip(TEXTS, samples, expected):
        assert [*model.tokenizer.encode(text).ids, *sample.tokens] == tokens
        assert text + sample.text == whole


def test_scores_begin_after_the_first_token(exported):
    _, theirs, model = exported
    ids = torch.tensor([model.tokenizer.encode(TEXTS[2]).ids])
    with torch.no_grad():
        expected = theirs(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    found = neojax.score(model, TEXTS[2])
    assert found.tokens.tolist() == ids[0, 1:].tolist()
    np.testing.assert_allclose(found.logprobs, expected, atol=2e-5)
    with_context = neojax.score(model, " and the cat", contexts="the dog sat")
    whole = neojax.score(model, "the dog sat and the cat")
    np.testing.assert_allclose(with_context.logprobs, whole.logprobs[-len(with_context.tokens) :], atol=2e-5)


def test_padding_on_either_side_changes_nothing(exported):
    _, theirs, model = exported
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, (4, 32)).astype(np.int32)
    at, lengths = np.arange(32), np.array([[32], [9], [1], [20]])
    real = np.where(np.arange(4)[:, None] % 2, at >= 32 - lengths, at < lengths)
    with torch.no_grad():
        mask = torch.tensor(real, dtype=torch.long)
        expected = theirs(torch.tensor(tokens, dtype=torch.long), attention_mask=mask).logits.numpy()
    found = np.asarray(model(tokens, segments=real.astype(np.int32)))
    np.testing.assert_allclose(found[real], expected[real], atol=5e-5)
