"""A batch: the tokens of its rows, what is scored of them, and where one document ends and the next
begins."""

from typing import Any, NamedTuple

Array = Any  # NumPy's where rows are read, JAX's on the devices

NOT_SCORED = -1  # target of a position of which nothing is scored


class Batch(NamedTuple):
    """Rows of tokens to train on or to score, as arrays [..., batch, sequence]: NumPy's where they are read,
    then JAX's.

    A field that is None is left out of a compiled program altogether. A batch is a pytree of those that are
    not.
    """

    tokens: Array
    """int32: what the model sees."""

    targets: Array
    """int32: what it is to predict at each position; `NOT_SCORED` where nothing is scored."""

    weights: Array | None = None
    """float32: how much each scored position counts; None: 1."""

    segments: Array | None = None
    """int32: which document of its row a token belongs to, from 1 on; 0 is padding. The tokens of a segment
    stand together, and attend to their own segment alone. None: every row is one document."""

    positions: Array | None = None
    """int32: the position of each token, as position embeddings mean it; None: its place in the row."""
