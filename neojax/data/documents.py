"""Where the documents in a window of tokens begin, so that each can stand apart (`data.isolate_documents`).

A document begins where its source's index says so, and behind every end-of-document token. A position belongs
to the document of the token that it predicts. So the end-of-document token that stands before a text is the
first token of that text's document, as it is where a text is scored or continued, and the loss of a whole
document is that of the document alone (`neojax.score`). Where another token stands there, since documents
were stored without an end, that token is the last of its own document and predicts nothing; the next document
begins with its own first token, which is not scored. The parts of a document that several windows hold are
documents of their own.
"""

import numpy as np

from neojax.config import DataConfig
from neojax.data import tokenizer as tokenizers
from neojax.data.batch import NOT_SCORED, Batch
from neojax.data.sources import TokenSource, end_of_document_id
from neojax.errors import NeojaxError
from neojax.storage.remote import place

TOKENIZER = "tokenizer.json"


class Documents:
    """The documents of a source. Raises `NeojaxError` where its index is of examples of one size, which hold
    parts of documents, and nothing says which token ends a document."""

    def __init__(self, source: TokenSource, data: DataConfig):
        self._end = end_id(source, data)
        self._source, self._has_index = source, source.example_size is None
        if not self._has_index and self._end is None:
            raise NeojaxError(
                f"{source}: its examples of {source.example_size} tokens are parts of documents, and "
                "nothing says which token ends a document: set data.tokenizer to the tokenizer.json it was "
                "encoded with, or data.isolate_documents=false"
            )

    def row(self, start: int, window: np.ndarray) -> Batch:
        """The row [sequence] that tokens [sequence + 1] of the source, from the one at `start` on, give to a
        batch."""
        begins = np.zeros(len(window), bool)  # whether the token is the first of a document
        if self._has_index:
            begins[self._source.starts_within(start, start + len(window)) - start] = True
        is_end = np.zeros(len(window), bool) if self._end is None else window == self._end
        begins[1:] |= is_end[:-1]
        bare = (
            begins[1:] & ~is_end[:-1]
        )  # positions that would predict a first token from another document's last
        starts = begins[1:] & is_end[:-1]
        starts[1:] |= bare[:-1]
        starts[:1] = True
        index = np.arange(len(starts))
        return Batch(
            tokens=window[:-1],
            targets=np.where(bare, NOT_SCORED, window[1:].astype(np.int64)),
            segments=np.cumsum(starts),
            positions=index - np.maximum.accumulate(np.where(starts, index, 0)),
        )


def end_id(source: TokenSource, data: DataConfig) -> int | None:
    """The id that ends the documents of `source`: as its folder notes it, else the usual one of
    data.tokenizer or of the tokenizer beside it; None where nothing says. Raises `NeojaxError` for a
    tokenizer that cannot be read."""
    if (noted := end_of_document_id(source)) is not None:
        return noted
    path = place(data.tokenizer) if data.tokenizer else source.folder / TOKENIZER
    if not data.tokenizer and not path.is_file():
        return None
    return tokenizers.usual_end(tokenizers.load(path, data.merges))
