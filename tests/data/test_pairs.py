"""Pairs of segments: what rows hold, that every sentence has its turn, and that nobody has a say in them."""

import json
import threading

import numpy as np
import pytest

from neojax.config import DataConfig, SourceConfig
from neojax.data.batch import NOT_SCORED
from neojax.data.draws import Draws, between, bits, uniform
from neojax.data.loader import train_batches, validation_batches
from neojax.data.masking import Masking
from neojax.data.pairs import FOLLOWS, OTHER, Pairing, Pairs
from neojax.data.store import StoreWriter, TokenStore
from neojax.errors import NeojaxError

CLS, SEP, MASK, PAD, END, FIRST = 1, 2, 3, 4, 5, 10  # and every other token is its place in the store
N_VOCAB = 60_000
N_CTX = 48


def pairing(kind, short_prob=0.0, **masking):
    return Pairing(kind, short_prob, CLS, SEP, PAD, Masking(MASK, N_VOCAB, **masking))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """As `neojax prepare` leaves it: documents of up to 40 sentences, and two of but an end."""
    prefix = tmp_path_factory.mktemp("pairs") / "train"
    rng = np.random.default_rng(0)
    place = FIRST
    with StoreWriter(prefix, N_VOCAB) as writer:
        for number in range(402):
            sizes = rng.integers(1, 30, 1 if number % 10 == 0 else rng.integers(1, 41))
            if number in (7, 300):
                sizes = np.array([0])
            sizes[-1] += 1
            tokens = np.arange(place, place + sizes.sum()) % (N_VOCAB - FIRST) + FIRST
            tokens[-1] = END
            place += sizes.sum()
            writer.add(tokens, sizes, np.array([len(sizes)]))
    note = {"tokenizer": {"end_of_document_id": END}}
    (prefix.parent / "prepared.json").write_text(json.dumps(note))
    return TokenStore(prefix)


@pytest.fixture(scope="module")
def unique(tmp_path_factory):
    """As `store`, with no token twice: 60 documents."""
    prefix = tmp_path_factory.mktemp("pairs") / "validation"
    rng = np.random.default_rng(1)
    with StoreWriter(prefix, N_VOCAB) as writer:
        place = FIRST
        for number in range(60):
            sizes = rng.integers(1, 30, 1 if number % 10 == 0 else rng.integers(2, 41))
            sizes[-1] += 1
            tokens = np.arange(place, place + sizes.sum())
            tokens[-1] = END
            place += sizes.sum()
            writer.add(tokens, sizes, np.array([len(sizes)]))
    (prefix.parent / "prepared.json").write_text(json.dumps({"tokenizer": {"end_of_document_id": END}}))
    return TokenStore(prefix)


def segments(row):
    """The tokens of A and B before masking, by their places in the store; checks the form of the row."""
    tokens = np.where(row.targets >= 0, row.targets, row.tokens)
    assert 5 <= len(tokens) <= N_CTX and (row.segments == 1).all()
    ends = np.flatnonzero(tokens == SEP)
    assert tokens[0] == CLS and len(ends) == 2 and ends[1] == len(tokens) - 1
    assert END not in tokens and (row.targets[[0, *ends]] == NOT_SCORED).all()
    np.testing.assert_array_equal(row.token_types, np.arange(len(tokens)) > ends[0])
    a, b = tokens[1 : ends[0]], tokens[ends[0] + 1 : -1]
    for part in (a, b):
        assert len(part) and (np.diff(part) == 1).all()  # it stands so in the store
    return a, b


def document_of(store, token):
    return int(np.searchsorted(store.starts, token - FIRST, side="right")) - 1


def rows(pairs, count=None, epoch=0):
    first = epoch * pairs.epoch_size
    return [pairs[i] for i in range(first, first + (count or pairs.epoch_size))]


def test_sentence_order_pairs_are_in_order_or_changed_and_of_one_document(unique):
    found = {FOLLOWS: 0, OTHER: 0}
    for row in rows(Pairs(unique, N_CTX, pairing("sop"), END, 0)):
        a, b = segments(row)
        same = document_of(unique, a[0]) == document_of(unique, b[0])
        is_single = not same
        if is_single:  # one sentence alone has no order
            assert row.labels == OTHER
            continue
        found[int(row.labels)] += 1
        first, second = (a, b) if row.labels == FOLLOWS else (b, a)
        assert first[-1] < second[0]
    assert 0.4 < found[OTHER] / sum(found.values()) < 0.6 and sum(found.values()) > 300


def test_next_sentence_pairs_follow_or_are_of_another_document(unique):
    labels = []
    for row in rows(Pairs(unique, N_CTX, pairing("nsp"), END, 0)):
        a, b = segments(row)
        same = document_of(unique, a[0]) == document_of(unique, b[0])
        assert same == (row.labels == FOLLOWS) and (not same or a[-1] < b[0])
        labels.append(row.labels)
    assert 0.45 < np.mean(labels) < 0.7


@pytest.mark.parametrize("kind", ["nsp", "sop"])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_sentence_has_its_turn_once_in_an_epoch(kind, epoch, store):
    plan = Pairs(store, N_CTX, pairing(kind, 0.1), END, 0).plan(epoch)
    used = plan.in_a if kind == "nsp" else plan.taken
    used = np.where(plan.label == OTHER, used, plan.taken)
    seen = np.concatenate([np.arange(a, a + n) for a, n in zip(plan.first, used)])
    starts, bounds = store.sentences
    only_ends = {int(bounds[7]), int(bounds[300])}
    assert sorted(seen) == [s for s in range(len(starts) - 1) if s not in only_ends]
    assert (plan.in_a >= 1).all() and (plan.in_a < np.maximum(plan.taken, 2)).all()
    lengths = starts[plan.first + plan.taken] - starts[plan.first]
    last = plan.first + plan.taken == bounds[plan.document + 1]
    assert (lengths >= plan.target)[~last].all()
    shorter = starts[plan.first + plan.taken - 1] - starts[plan.first]
    assert (shorter < plan.target).all()


def test_a_tenth_of_the_documents_has_rows_of_any_length(store):
    plans = [Pairs(store, N_CTX, pairing("sop", 0.1), END, seed).plan(0) for seed in range(10)]
    short = np.concatenate([p.target[np.unique(p.document, return_index=True)[1]] for p in plans])
    assert np.mean(short < N_CTX - 3) == pytest.approx(0.1, abs=0.02)
    assert short.min() <= 4 and len(np.unique(short)) > 30


def test_rows_are_a_function_of_seed_and_place_whoever_asks_first(store):
    made = Pairs(store, N_CTX, pairing("nsp", 0.1), END, 5)
    size = made.epoch_size
    asked = [0, 1, size - 1, size, size + 1, 2 * size + 7, 5 * size]
    expected = {i: made[i] for i in asked}
    again, found = Pairs(store, N_CTX, pairing("nsp", 0.1), END, 5), {}

    def ask(places):
        for i in places:
            found[i] = again[i]

    threads = [threading.Thread(target=ask, args=(asked[::-1][k::2],)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in asked:
        for one, other in zip(expected[i], found[i]):
            np.testing.assert_array_equal(one, other)
    other = Pairs(store, N_CTX, pairing("nsp", 0.1), END, 6)
    assert any(len(made[i].tokens) != len(other[i].tokens) for i in range(20))


def test_epochs_are_made_anew_and_are_as_long_as_the_first(store):
    pairs = Pairs(store, N_CTX, pairing("sop", 0.1), END, 0)
    plans = [pairs.plan(epoch) for epoch in range(3)]
    assert len({len(plan.first) for plan in plans}) > 1
    assert not np.array_equal(plans[0].label[:200], plans[1].label[:200])
    first = {pairs._epoch(e)[1][0] for e in range(3)}
    assert len(first) == 3
    pairs[2 * pairs.epoch_size - 1]  # where the second epoch has fewer rows, it begins anew
    assert len(pairs._epochs) <= 2


def test_every_process_reads_its_rows_of_the_same_batches(store, unique):
    data = DataConfig(train=(SourceConfig(str(store.prefix), 3.0), SourceConfig(str(unique.prefix), 1.0)))
    made = pairing("sop", 0.1)
    whole = train_batches(data, N_CTX, 8, seed=1, start_step=40, pairing=made)
    mine = train_batches(data, N_CTX, 8, seed=1, start_step=41, rows=[1, 6], pairing=made)
    next(whole)
    for _ in range(2):
        expected, found = next(whole), next(mine)
        assert expected.tokens.shape == (8, N_CTX) and expected.labels.shape == (8,)
        for a, b in zip(expected, found):
            if a is not None:
                np.testing.assert_array_equal(a[[1, 6]], b)
        padding = expected.segments == 0
        assert (expected.tokens[padding] == PAD).all() and (expected.targets[padding] == NOT_SCORED).all()


def test_held_out_pairs_and_their_masks_are_the_same_every_time(unique):
    source = SourceConfig(str(unique.prefix))
    once, twice = (
        list(validation_batches(DataConfig(), source, N_CTX, 64, pairing=pairing("sop", 0.1)))
        for _ in range(2)
    )
    for a, b in zip(once, twice):
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)
    size = Pairs(unique, N_CTX, pairing("sop", 0.1), END, 0, shuffled=False).epoch_size
    labels = np.concatenate([batch.labels for batch in once])
    assert len(labels) % 64 == 0 and (labels >= 0).sum() == size
    filled = once[-1].labels < 0
    assert (
        filled.any()
        and (once[-1].targets[filled] == NOT_SCORED).all()
        and not once[-1].segments[filled].any()
    )


def test_sentences_that_do_not_fit_are_cut_at_both_ends(tmp_path):
    with StoreWriter(tmp_path / "s", N_VOCAB) as writer:
        writer.add(np.arange(10, 2010), np.array([900, 1100]), np.array([2]))
    made = Pairing("sop", 0.0, CLS, SEP, PAD, Masking(MASK, N_VOCAB))
    pairs = Pairs(TokenStore(tmp_path / "s"), N_CTX, made, None, 0)
    row = pairs[0]
    a, b = segments(row)
    assert len(row.tokens) == N_CTX and {len(a), len(b)} == {22, 23}
    first = min(a[0], b[0])
    assert 300 < first < 600  # half of what is cut is cut from the front


def test_a_store_without_sentences_is_refused(make_store):
    source = TokenStore(make_store("plain", [5, 6, 7]))
    with pytest.raises(NeojaxError, match=r"does not keep where sentences end.*--sentences marks"):
        Pairs(source, N_CTX, pairing("sop"), END, 0)


def test_draws_are_what_they_have_always_been():
    """Rows of runs that go on depend on them."""
    assert bits(1, 2, np.arange(3)).tolist() == EXPECTED
    assert Draws(bits(7)).bits(2).tolist() == [int(bits(bits(7), k)) for k in range(2)]
    found = uniform(bits(3, np.arange(100_000)))
    assert found.mean() == pytest.approx(0.5, abs=0.01) and found.min() >= 0 and found.max() < 1
    counts = np.bincount(between(bits(4, np.arange(60_000)), 2, 7))
    assert len(counts) == 8 and counts[2:].min() > 9_700 and counts[:2].sum() == 0


EXPECTED = [16613338946343043936, 13264548337748323810, 16803123258551283528]
