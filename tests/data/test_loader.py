import itertools

import jax
import numpy as np
import pytest

from neojax.config import DataConfig, SourceConfig
from neojax.data.batch import Batch
from neojax.data.loader import check_ids, train_batches, validation_batches
from neojax.data.store import TokenStore
from neojax.errors import NeojaxError

N_CTX = 8


def data(*sources, **options) -> DataConfig:
    return DataConfig(train=tuple(SourceConfig(p, w) for p, w in sources), **options)


def take(n, *args, **options):
    return list(itertools.islice(train_batches(*args, **options), n))


def assert_same(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.targets, b.targets)


def scored(batches):
    targets = np.concatenate([b.targets.ravel() for b in batches])
    return targets[targets >= 0]


def test_each_token_but_the_first_is_a_target_once_an_epoch_and_follows_its_input(make_store):
    n_windows = 13  # 100 tokens: 12 whole windows and one of 3 targets
    config = data((make_store("a", [30, 1, 69]), 1.0))
    epochs = [take(n_windows, config, N_CTX, 1, 0, start_step=e * n_windows) for e in range(3)]
    for batches in epochs:
        assert sorted(scored(batches)) == list(range(1, 100))
        for batch in batches:
            is_scored = batch.targets >= 0
            assert (batch.targets == batch.tokens + 1)[is_scored].all()
            assert batch.tokens.dtype == batch.targets.dtype == np.int32
    orders = [[int(b.tokens[0, 0]) for b in batches] for batches in epochs]
    assert orders[0] != sorted(orders[0]) and orders[0] != orders[1] != orders[2]


def test_batches_run_over_the_end_of_an_epoch(make_store):
    config = data((make_store("a", [101]), 1.0))  # 13 windows, batches of 4
    rows = np.concatenate([b.tokens for b in take(13, config, N_CTX, 4, 0)])
    assert rows.shape == (52, N_CTX)
    counts = np.unique(rows[:, 0], return_counts=True)[1]
    assert (counts == 4).all() and len(counts) == 13


def test_the_sequence_does_not_depend_on_restarts_prefetch_or_readers(make_store):
    sources = (make_store("a", [500]), 2.0), (make_store("b", [300], first=10_000), 1.0)
    whole = take(20, data(*sources), N_CTX, 4, seed=3)
    assert_same(take(20, data(*sources, prefetch=1), N_CTX, 4, seed=3), whole)
    assert_same(take(13, data(*sources), N_CTX, 4, seed=3, start_step=7), whole[7:])
    for rows in ([0, 1], [2, 3], [0, 3], [1], [0, 1, 2, 3]):
        mine = take(13, data(*sources), N_CTX, 4, 3, 7, rows=rows)
        assert_same(mine, [Batch(batch.tokens[rows], batch.targets[rows]) for batch in whole[7:]])


def test_the_seed_changes_the_order_and_neighbouring_seeds_share_no_epoch(make_store):
    config = data((make_store("a", [801]), 1.0))
    firsts = lambda seed, start: [int(b.tokens[0, 0]) for b in take(100, config, N_CTX, 1, seed, start)]  # noqa: E731
    assert firsts(0, 0) != firsts(1, 0)
    assert firsts(0, 100) != firsts(1, 0)


def test_two_sources_of_one_size_are_shuffled_differently(make_store):
    config = data((make_store("a", [801]), 1.0), (make_store("b", [801], first=10_000), 1.0))
    firsts = np.array([b.tokens[0, 0] for b in take(200, config, N_CTX, 1, 0)])
    assert (firsts[firsts < 10_000] != firsts[firsts >= 10_000] - 10_000).any()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 1.5), (0.3, 0.1), (0.07, 0.93)])
def test_the_mixture_keeps_its_weights_at_every_length(make_store, weights):
    a, b = make_store("a", [200]), make_store("b", [1000], first=10_000)
    firsts = np.concatenate(
        [x.tokens[:, 0] for x in take(100, data((a, weights[0]), (b, weights[1])), N_CTX, 8, 0)]
    )
    for n in (50, 200, 800):
        assert abs((firsts[:n] < 10_000).sum() - n * weights[0] / sum(weights)) <= 2


def test_a_source_of_weight_zero_gives_nothing_and_needs_no_file(make_store):
    a = make_store("a", [200])
    assert_same(
        take(30, data((a, 1.0), ("no/such/store", 0.0)), N_CTX, 2, 0), take(30, data((a, 1.0)), N_CTX, 2, 0)
    )


def test_a_late_step_is_reached_without_the_steps_before(make_store):
    config = data((make_store("a", [5000]), 1.0), (make_store("b", [300], first=10_000), 0.5))
    late = take(3, config, N_CTX, 4, 0, start_step=10**15)
    assert_same(take(1, config, N_CTX, 4, 0, start_step=10**15 + 2), late[2:])


def test_a_store_shorter_than_a_window_is_padded_and_not_scored_there(make_store):
    batch = take(1, data((make_store("a", [4]), 1.0)), N_CTX, 2, 0)[0]
    assert batch.tokens.tolist() == [[0, 1, 2, 0, 0, 0, 0, 0]] * 2
    assert batch.targets.tolist() == [[1, 2, 3, -1, -1, -1, -1, -1]] * 2


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("n_tokens", [2, 9, 10, 100, 257, 258])
def test_validation_scores_every_token_once_in_order_on_every_number_of_hosts(make_store, n_tokens, count):
    source = SourceConfig(make_store("v", [n_tokens]))
    parts = [range(i, 4, count) for i in range(count)]
    hosts = [list(validation_batches(DataConfig(), source, N_CTX, 4, rows=rows)) for rows in parts]
    assert len({len(batches) for batches in hosts}) == 1
    assert all(b.tokens.shape == b.targets.shape == (4 // count, N_CTX) for h in hosts for b in h)
    in_order = [jax.tree.map(lambda *rows: np.stack(rows, 1), *step) for step in zip(*hosts, strict=True)]
    assert scored(in_order).tolist() == list(range(1, n_tokens))


def test_what_cannot_be_loaded_is_said(make_store):
    a = make_store("a", [50])
    for config, cause in [
        (data(), "data.train is empty"),
        (data((a, 0.0)), "weight 0"),
        (data((make_store("empty", []), 1.0)), "holds 0 tokens"),
        (data((make_store("one", [1]), 1.0)), "holds 1 tokens"),
        (data(("no/such", 1.0)), "no/such"),
    ]:
        with pytest.raises(NeojaxError, match=cause):
            train_batches(config, N_CTX, 4, 0, 0)
    with pytest.raises(NeojaxError, match="no/such"):
        validation_batches(DataConfig(), SourceConfig("no/such"), N_CTX, 4)


def test_ids_beyond_the_vocabulary_are_named(make_store):
    store = TokenStore(make_store("a", [50]))
    check_ids([store], 50)
    with pytest.raises(NeojaxError, match=r"a holds id 49, but model\.n_vocab=49"):
        check_ids([store], 49)
