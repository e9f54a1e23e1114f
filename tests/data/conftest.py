"""Fixtures: tokens and tokenizers made up here."""

from pathlib import Path

import numpy as np
import pytest

from neojax.data.store import StoreWriter


@pytest.fixture
def make_store(tmp_path):
    """Writes a store of the tokens 0, 1, 2, ... in documents of the given sizes; returns its prefix."""

    def make(name: str, sizes, first: int = 0, n_vocab: int = 70_000) -> str:
        sizes = np.asarray(sizes, np.int32)
        with StoreWriter(tmp_path / name, n_vocab) as writer:
            writer.add(np.arange(first, first + sizes.sum()), sizes)
        return str(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory) -> Path:
    """A tokenizer.json with one id for each byte, and end of document."""
    from neojax.data.tokenizer import train

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train([], 257).save(str(path))
    return path
