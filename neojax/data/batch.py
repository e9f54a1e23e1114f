"""A batch: the tokens of its rows, what is scored of them, and where one document ends and the next
begins."""

from typing import Any, NamedTuple

Array = Any  # NumPy's where rows are read, JAX's on the devices

NOT_SCORED = -1  # target of a position of which nothing is scored


class Batch(NamedTuple):
    """Rows of tokens to train on or to score, as arrays [..., batch, sequence]: NumPy's where they are read,
    then JAX's. `labels` alone has no sequence. Where a row is a question with several answers to choose from,
    all others are [..., batch, choices, sequence].

    A field that is None is left out of a compiled program altogether. A batch is a pytree of those that are
    not.
    """

    tokens: Array
    """int32: what the model sees."""

    targets: Array
    """int32: what it is to predict at each position, a token or the class of one; `NOT_SCORED` where nothing
    is scored."""

    weights: Array | None = None
    """float32: how much each scored position counts; None: 1."""

    segments: Array | None = None
    """int32: which document of its row a token belongs to, from 1 on; 0 is padding. The tokens of a segment
    stand together, and attend to their own segment alone. None: every row is one document."""

    positions: Array | None = None
    """int32: the position of each token, as position embeddings mean it; None: its place in the row."""

    branches: Array | None = None
    """int32: in a segment whose tokens are a tree, 0 for its trunk, which all behind it see, and n for branch
    n, which stands behind the trunk, sees it and itself, and has the `positions` that follow the trunk's.
    None: no segment has branches."""

    token_types: Array | None = None
    """int32: which part of its row a token belongs to, a row of the table of token types: in BERT's pairs 0
    for [CLS] A [SEP] and 1 for B [SEP]. None: 0 everywhere."""

    labels: Array | None = None
    """What is to be said of each row as a whole, [..., batch] or [..., batch, n], as the model's head has it:

    - pair: int32 [batch], 0 where B follows A (SOP: where they stand in order), 1 where not;
    - sequence_classification: int32 [batch], a class; float32 [batch], a number, where there is one label;
      float32 [batch, labels], whether each of them holds;
    - question_answering: int32 [batch, 2], the first and the last token of the answer;
    - multiple_choice: int32 [batch], which of the choices is right.

    `NOT_SCORED`, or NaN among floats, is a row of which nothing is scored. Heads that score tokens alone take
    `targets` and no labels."""
