"""What is masked of a row on the host: how much, what stands there, and spans of whole words."""

from itertools import pairwise

import numpy as np
import pytest

from neojax.config import from_dict
from neojax.data import tokenizer as tokenizers
from neojax.data.draws import Draws, bits
from neojax.data.masking import Masking
from neojax.data.pairing import pairing_of
from neojax.data.words import word_starts
from neojax.errors import NeojaxError

N_VOCAB, MASK, LENGTH = 1000, 4, 128
SEGMENTS = [(1, 70), (71, 127)]


def rows(masking, count=400, length=LENGTH, segments=SEGMENTS):
    rng = np.random.default_rng(0)
    for i in range(count):
        tokens = rng.integers(10, N_VOCAB, length).astype(np.int32)
        draws = Draws(bits(9, i))
        chosen = masking.chosen(tokens, segments, draws)
        yield tokens, chosen, masking.shown(tokens, chosen, draws)


def test_a_share_of_the_row_is_hidden_as_bert_does():
    parts = [np.concatenate(part) for part in zip(*rows(Masking(MASK, N_VOCAB, 0.15)))]
    tokens, chosen, shown = parts
    assert chosen.sum() == 400 * round(0.15 * LENGTH)
    assert not chosen.reshape(400, LENGTH)[:, [0, 70, 127]].any()
    assert (chosen.reshape(400, LENGTH).sum(0)[[1, 69, 71, 126]] > 30).all()
    assert (shown[~chosen] == tokens[~chosen]).all()
    masked, same = (shown == MASK)[chosen], (shown == tokens)[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.02) and same.mean() == pytest.approx(0.1, abs=0.02)
    random = shown[chosen][~masked & ~same]
    assert random.min() < 50 and random.max() > 950 and len(np.unique(random)) > 300


def test_no_more_is_masked_than_is_asked_and_never_nothing():
    masking = Masking(MASK, N_VOCAB, 0.15, max_predictions=5)
    assert all(chosen.sum() == 5 for _, chosen, _ in rows(masking, 20))
    short = Masking(MASK, N_VOCAB, 0.15)
    assert all(chosen.sum() == 1 for _, chosen, _ in rows(short, 20, 5, [(1, 2), (3, 4)]))
    never = tuple(range(10, N_VOCAB, 2))
    for tokens, chosen, _ in rows(Masking(MASK, N_VOCAB, 0.15, never=never), 20):
        assert chosen.sum() == 19 and (tokens[chosen] % 2 == 1).all()
    assert not next(rows(Masking(MASK, N_VOCAB, never=tuple(range(N_VOCAB)))))[1].any()


def test_special_tokens_that_a_text_spells_out_are_never_told():
    tokenizer = tokenizers.train(["to be or not to be"], 64, "wordpiece")
    config = from_dict({"model": {"family": "bert", "n_vocab": 64}, "data": {"pairs": "sop"}})
    pairing = pairing_of(config, tokenizer.to_str())
    ids = tokenizer.encode("to [SEP] be [MASK] or [CLS] not [PAD] to be", add_special_tokens=False).ids
    special = {pairing.cls, pairing.sep, pairing.pad, pairing.masking.mask_id}
    assert special < set(ids)
    told = set()
    for i in range(100):
        chosen = pairing.masking.chosen(np.array(ids), [(0, len(ids))], Draws(bits(i)))
        told |= set(np.array(ids)[chosen].tolist())
    assert told == set(ids) - special


def test_words_are_masked_whole_in_runs_of_one_to_three_within_a_segment():
    starts = np.arange(N_VOCAB) % 3 > 0  # a third of the pieces goes on with a word
    masking = Masking(MASK, N_VOCAB, 0.15, word_starts=starts, max_ngram=3)
    runs = {}
    for tokens, chosen, _ in rows(masking, 600):
        assert 0 < chosen.sum() <= round(0.15 * LENGTH)
        for first, stop in SEGMENTS:
            begins = np.append(
                np.flatnonzero(starts[tokens[first:stop]] | (np.arange(stop - first) == 0)), stop - first
            )
            whole = [chosen[first + a : first + b] for a, b in pairwise(begins)]
            assert all(word.all() or not word.any() for word in whole)
            run = 0
            for is_masked in [*(word.all() for word in whole), False]:
                if not is_masked and run:
                    runs[run] = runs.get(run, 0) + 1
                run = run + 1 if is_masked else 0
    shares = np.array([runs[n] for n in (1, 2, 3)]) / sum(runs.values())
    # 6/11, 3/11, 2/11 but for spans that come to lie side by side, or are cut to what is left
    np.testing.assert_allclose(shares, [0.52, 0.27, 0.15], atol=0.05)


def test_n_words_are_drawn_in_proportion_to_one_over_n():
    draws = (np.arange(11_000) + 0.5) / 11_000
    counts = np.bincount(Masking._n_words(draws, np.full(len(draws), 3)))
    np.testing.assert_allclose(counts, [0, 6000, 3000, 2000], atol=1)
    most = np.arange(len(draws)) % 3 + 1
    assert [Masking._n_words(draws, most)[most == n].max() for n in (1, 2, 3)] == [1, 2, 3]


def test_where_words_begin(shared_data, byte_tokenizer):
    folder = shared_data / "tokenizers"
    expected = {
        "bert-uncased.vocab.txt": "[CLS] un ##aff ##able , the [SEP]",
        "albert-30k-clean.spiece.model": "[CLS] ▁un aff able , 's ▁the é 12 [SEP]",
    }
    begins = {
        "bert-uncased.vocab.txt": [1, 1, 0, 0, 1, 1, 1],
        "albert-30k-clean.spiece.model": [1, 1, 0, 0, 1, 0, 1, 1, 1, 1],
    }
    for name, pieces in expected.items():
        tokenizer = tokenizers.load(folder / name)
        n_ids = tokenizers.n_ids(tokenizer)
        found = word_starts(tokenizer, n_ids + 8)
        ids = [tokenizer.token_to_id(piece) for piece in pieces.split()]
        kept = [(i, b) for i, b in zip(ids, begins[name]) if i is not None]
        assert len(kept) > 5 and [int(found[i]) for i, _ in kept] == [b for _, b in kept]
        assert len(found) == n_ids + 8
    gpt2 = tokenizers.load(shared_data / "gpt2-tokenizer")
    ids = gpt2.encode("unbelievable fact, isn't").ids
    found = word_starts(gpt2, 50257)
    assert [p for i, p in zip(ids, gpt2.encode("unbelievable fact, isn't").tokens) if found[i]] == [
        "Ġfact",
        ",",
        "Ġisn",
        "'t",
    ]
    from tokenizers import Tokenizer, models

    with pytest.raises(NeojaxError, match="which pieces of this tokenizer begin a word is not known"):
        word_starts(Tokenizer(models.WordLevel({"a": 0}, "a")), 1)
