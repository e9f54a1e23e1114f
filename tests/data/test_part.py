"""The documents of one pair of files, cut as GPT-NeoX cuts them. Facts: its `data_utils.py`, run on the pair
of the reference data."""

import numpy as np
import pytest

from neojax.config import DataConfig, SourceConfig
from neojax.data.loader import train_batches, validation_batches
from neojax.data.part import bounds
from neojax.data.sources import open_source
from neojax.data.store import StoreWriter, TokenStore
from neojax.errors import NeojaxError


@pytest.mark.parametrize(
    "split, count, cut",
    [
        ("969,30,1", 1000, [0, 969, 999, 1000]),
        ("969, 30, 1", 10, [0, 10, 10, 10]),
        ("1/1/1", 5, [0, 1, 3, 5]),
        ("949,50,1", 100, [0, 95, 100, 100]),
        ("50,50", 5, [0, 3, 5, 5]),
        ("7", 5, [0, 5, 5, 5]),
    ],
)
def test_parts_are_cut_as_gpt_neox_cuts_them(split, count, cut):
    assert bounds(split, count) == cut


@pytest.mark.parametrize("split", ["", "a,b", "0,0", "-1,2", "1,1,1,1", "nan"])
def test_a_split_that_is_none_is_named(split):
    with pytest.raises(NeojaxError, match=r"^split: expected up to three shares"):
        bounds(split, 5)


def test_the_parts_of_the_reference_pair(shared_data):
    prefix = shared_data / "megatron" / "meg-gpt2-openwebtext_text_document"
    parts = [open_source(prefix, use, "969,30,1") for use in ("train", "validation")]
    assert [(part.n_documents, part.n_tokens) for part in parts] == [(969, 1_329_945), (30, 31_142)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ten documents, of 3, 4, ... 12 tokens."""
    prefix = tmp_path_factory.mktemp("store") / "text"
    with StoreWriter(prefix, 500) as writer:
        for i in range(10):
            writer.append(np.arange(i + 3) + 20 * i)
            writer.end_document()
    return prefix


def test_a_part_is_its_documents_and_no_other(store):
    whole, part = TokenStore(store), open_source(store, "validation", "5,3,2")
    own = np.concatenate([whole.documents(i) for i in (5, 6, 7)])
    assert part.n_documents == 3 and list(part.starts) == [0, 8, 17, 27] and part.folder == store.parent
    assert list(part.starts_within(1, 18)) == [8, 17] and part.n_tokens == len(own)
    np.testing.assert_array_equal(part.read(-3, 1000), own)
    np.testing.assert_array_equal(part.read(4, 9), own[4:9])
    assert len(part.read(50, 60)) == 0 and "split 5,3,2" in str(part)


def test_training_and_validation_of_one_pair_share_no_token(store):
    source = SourceConfig(path=str(store), split="5,5,0")
    data = DataConfig(train=(source,), validation=(source,), prefetch=1)
    seen = {int(t) for batch, _ in zip(train_batches(data, 4, 2, 0), range(20)) for t in batch.tokens.flat}
    held = {int(t) for batch in validation_batches(data, source, 4, 2) for t in batch.tokens.flat} - {0}
    assert max(seen) < 100 <= min(held)


def test_a_split_of_what_is_no_token_store_is_refused(tmp_path):
    (tmp_path / "a.tfrecords").touch()
    with pytest.raises(NeojaxError, match="split=9,1 is for token stores"):
        open_source(tmp_path / "a.tfrecords", "train", "9,1")
