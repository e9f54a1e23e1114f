"""The logits that a model gives to rows of different lengths."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from neojax.data.examples import Rows
from neojax.models import Transformer
from neojax.sampling.batching import rounded

TOKENS = 8192  # of texts that are read at once, so that activations stay bounded


def answers(model: Transformer, rows: Rows) -> list[np.ndarray]:
    """The logits of the model's head for each of `rows`, float32 [labels], or [sequence, labels] with
    padding."""
    parts = model.layout.split("batch")
    found: list[Any] = [None] * len(rows)
    for chosen in _batches(rows.lengths * rows.width, parts):
        batch = rows.batch(chosen, multiple=model.layout.row_multiple)
        logits = model.layout.fetch(
            model(batch.tokens, segments=batch.segments, token_types=batch.token_types)
        )
        for i, own in zip(chosen, logits):
            if i >= 0:
                found[i] = own
    return found


def _batches(lengths: np.ndarray, parts: int) -> Iterator[list[int]]:
    """All rows, those of a length together; -1 fills up a batch."""
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        most = parts * max(1, TOKENS // (parts * int(lengths[order[0]])))
        chosen, order = order[:most], order[most:]
        yield chosen + [-1] * (rounded(len(chosen), parts) - len(chosen))
