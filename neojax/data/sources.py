"""What a path of `data.train` or `data.validation` means: a token store, or TFRecord files."""

import glob
import json
from pathlib import Path
from typing import Protocol

import numpy as np

from neojax.data import tfrecord
from neojax.data.part import Part
from neojax.data.store import TokenStore, resolve
from neojax.errors import NeojaxError
from neojax.storage.remote import place

# the path of a source so begins whose own description, which names its files, is not there
ABSENT = "dataset_configs/"


class TokenSource(Protocol):
    """A stream of token ids that is read at random. As a text, it names itself in messages."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def n_documents(self) -> int:
        """Documents, or the examples that they were cut into."""

    @property
    def example_size(self) -> int | None:
        """Tokens in each of the examples that the stream was cut into when it was written; None where it was
        not cut, or unevenly."""

    @property
    def extremes(self) -> tuple[int, int]:
        """Smallest and largest token id; (0, -1) where there is none."""

    @property
    def folder(self) -> Path:
        """Where its files lie, and perhaps their tokenizer."""

    @property
    def starts(self) -> np.ndarray:
        """int64 [documents + 1]: where every document (or example, where it was cut into these) begins in the
        stream, and where the last ends."""

    def starts_within(self, start: int, stop: int) -> np.ndarray:
        """Those of them that are at or behind `start` and before `stop`, found without reading all."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids [start, stop) of the stream, clipped to it."""


def end_of_document_id(source: TokenSource) -> int | None:
    """The id that ends the documents of `source`, as `neojax prepare` noted it in its folder; None where
    there is no note. Raises `NeojaxError` where the note cannot be read."""
    path = source.folder / "prepared.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found = about.get("tokenizer", {}).get("end_of_document_id")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as e:
        raise NeojaxError(f"{path} is not as `neojax prepare` wrote it: {e}") from None
    return found if type(found) is int else None


def open_source(path: str | Path, use: str, split: str = "") -> TokenSource:
    """Opens `path`: TFRecord files (a file, a folder or a glob of them), a token store, or that for `use`
    ("train", "validation") of a folder that `neojax prepare` wrote; of a token store the part for `use`,
    where `split` says its shares. Raises `NeojaxError`."""
    path = str(path)
    if path and not (place(path) / "prepared.json").is_file():
        if files := tfrecord.find(path):
            if split:
                raise NeojaxError(
                    f"data.{use}: split={split} is for token stores, and {path} is of TFRecords; leave it out"
                )
            return tfrecord.TFRecords(path, files)
        if tfrecord.is_tfrecord(path) or glob.has_magic(path):
            raise NeojaxError(f"data.{use}: there are no TFRecord files at {path}")
    store = TokenStore(resolve(path, use))
    return Part(store, split, use) if split else store
