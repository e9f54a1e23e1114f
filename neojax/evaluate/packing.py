"""How windows to score are laid into rows: what several begin with is read once, and short ones share a row.

A context with its answers is a tree: the trunk, which all of them begin with, and the rest of each as a
branch behind it, which sees the trunk and itself. Several trees stand in one row as segments that do not see
each other. So few tokens are read twice, and few are padding.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from neojax.data.batch import NOT_SCORED, Batch
from neojax.evaluate.windows import Window
from neojax.sampling.batching import bucket, power_of_two

ROWS = 64  # rows scored at once at most, in every part of a split batch,
TOKENS = 1 << 14  # and their tokens at most, so that activations stay bounded
ROW = 384  # tokens of a row that short texts share: more leave less padding, and cost more attention
SHARED = 8  # tokens that windows begin with alike, at least, for a branch
FEW = 16  # places for what is scored of a row, at least: few programs serve all


class Reading(NamedTuple):
    """Tokens that are read, and what is scored of them: `targets`, each after the token at its position
    (`at`). `parts` says which of these are whose: (window, first, number)."""

    tokens: list[int]
    at: list[int]
    targets: list[int]
    parts: list[tuple[int, int, int]]


class Tree(NamedTuple):
    """Readings of which the first `trunk` tokens are the same; a single one is all trunk. `size` tokens."""

    trunk: int
    readings: list[Reading]
    size: int


class Part(NamedTuple):
    """Where a batch has what is scored of a window: row, and places `at` in it."""

    window: int
    row: int
    at: slice | np.ndarray


class Packed(NamedTuple):
    """A batch, the positions `at` int32 [batch, scored] of its targets (None: all), and whose they are."""

    batch: Batch
    at: np.ndarray | None
    parts: list[Part]


def packed(
    windows: Sequence[Window], n_ctx: int, parts: int = 1, even: int = 1, *, shares: bool = True
) -> Iterator[Packed]:
    """Batches in which every scored token of `windows` is once, rows of many tokens first.

    parts: how many ways the batch is split; a row's length is a multiple of `even`. shares: whether windows
    that begin alike may be branches of a trunk.
    """
    trees = [*_trees(readings(windows), n_ctx if shares else 0)]
    trees.sort(key=lambda tree: -tree.size)
    while trees:
        each = -(-sum(tree.size for tree in trees) // parts)
        longest = bucket(max(trees[0].size, each if each <= 2 * ROW else ROW))
        length = min(n_ctx, -(-longest // even) * even)
        most = parts * min(ROWS, power_of_two(max(1, TOKENS // length) + 1) // 2)
        rows, trees = _filled(trees, length, most, parts)
        yield _laid(rows, length, _height(len(rows), parts), even)


def readings(windows: Sequence[Window]) -> list[Reading]:
    """What is read for `windows`; what begins alike stands side by side. What is read of one may be how
    another begins, as where both continue one context by a token; such are one reading, since no token sees
    those behind it."""
    # In this order what begins another stands right before one that it begins.
    order = sorted((i for i, w in enumerate(windows) if w.scored), key=lambda i: windows[i].tokens[:-1])
    found: list[Reading] = []
    for i in reversed(order):
        tokens, scored = windows[i]
        read = tokens[:-1]
        if not (found and found[-1].tokens[: len(read)] == read):
            found.append(Reading(read, [], [], []))
        own = found[-1]
        own.parts.append((i, len(own.at), scored))
        own.at.extend(range(len(read) - scored, len(read)))
        own.targets.extend(tokens[len(tokens) - scored :])
    return found


def _trees(found: Sequence[Reading], room: int) -> Iterator[Tree]:
    """Neighbours that begin alike, as trees of at most `room` tokens; without room, each by itself."""
    alike = [0, *(_alike(a.tokens, b.tokens) for a, b in pairwise(found)), 0]
    tree: Tree | None = None
    for reading, before, behind in zip(found, alike, alike[1:]):
        length = len(reading.tokens)
        if tree is not None:
            trunk, several = min(tree.trunk, before), len(tree.readings)
            # A trunk that gets shorter is read once more by every branch that is there.
            size = tree.size + (several - 1) * (tree.trunk - trunk) + length - trunk
            most = min(room, max(ROW, 2 * max(length, *(len(own.tokens) for own in tree.readings))))
            if trunk >= SHARED and size < tree.size + length and size <= most and behind <= 2 * trunk:
                tree = Tree(trunk, [*tree.readings, reading], size)
                continue
            yield tree
        tree = Tree(length, [reading], length)
    if tree is not None:
        yield tree


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _filled(trees: Sequence[Tree], length: int, most: int, parts: int) -> tuple[list[list[Tree]], list[Tree]]:
    """(at most `most` rows of `length` tokens, filled with `trees`, the largest first and each where the
    least room is left that takes it; the trees that are left, in their order)."""
    rows: list[list[Tree]] = []
    free: list[tuple[int, int]] = []  # (room left, row), rising
    left = []
    for number, tree in enumerate(trees):
        place = bisect_left(free, (tree.size, -1))
        if place < len(free):
            room, row = free.pop(place)
        elif len(rows) < most:
            room, row = length, len(rows)
            rows.append([])
        else:
            left.append(tree)
            if not free or free[-1][0] < trees[-1].size:  # nothing fits any more
                left += trees[number + 1 :]
                break
            continue
        rows[row].append(tree)
        if room > tree.size:
            insort(free, (room - tree.size, row))
    lower = [height for height in _heights(parts) if height <= len(rows)]
    if lower and len(rows) < 0.85 * _height(len(rows), parts):  # rows of padding would be many
        back = [tree for row in rows[lower[-1] :] for tree in row]
        rows, left = rows[: lower[-1]], sorted([*back, *left], key=lambda tree: -tree.size)
    return rows, left


def _heights(parts: int) -> list[int]:
    """How many rows batches have that are split into `parts`: few numbers, so that few programs are
    compiled."""
    return [parts * height for height in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)]


def _height(rows: int, parts: int) -> int:
    """The least of these that `rows` fit."""
    return next(height for height in _heights(parts) if height >= rows)


def _laid(rows: Sequence[Sequence[Tree]], length: int, height: int, even: int) -> Packed:
    """The arrays of rows."""
    tokens, segments, branches, positions = (np.zeros((height, length), np.int32) for _ in range(4))
    places: list[list[int]] = []
    targets: list[list[int]] = []
    whose: list[tuple[int, int, int, int]] = []  # window, row, first, number
    for row, trees in enumerate(rows):
        own_places: list[int] = []
        own_targets: list[int] = []
        end = 0
        for segment, tree in enumerate(trees, 1):
            trunk, first = tree.trunk, end
            for branch, reading in enumerate(tree.readings):
                begin = end - (trunk if branch else 0)  # where its tokens would begin without others between
                here = slice(end, begin + len(reading.tokens))
                tokens[row, here] = reading.tokens[trunk if branch else 0 :]
                segments[row, here] = segment
                branches[row, max(end, first + trunk) : here.stop] = branch + 1
                positions[row, here] = np.arange(here.start - begin, len(reading.tokens))
                end = here.stop
                whose += [(window, row, len(own_places) + at, n) for window, at, n in reading.parts]
                own_places += [(first if at < trunk else begin) + at for at in reading.at]
                own_targets += reading.targets
        places.append(own_places)
        targets.append(own_targets)
    count = max(FEW, power_of_two(max(map(len, places))))
    count = -(-count // even) * even
    # Where most of a row is scored, all positions are: nothing is moved, and a split sequence stays so.
    each = 2 * count > length and all(len(set(own)) == len(own) for own in places)
    at = np.zeros((height, length if each else count), np.int32)
    wanted = np.full_like(at, NOT_SCORED)
    for row, (own_places, own_targets) in enumerate(zip(places, targets)):
        at[row, : len(own_places)] = own_places
        wanted[row, own_places if each else slice(len(own_places))] = own_targets
    batch = Batch(tokens, wanted)
    if any(len(tree.readings) > 1 for trees in rows for tree in trees):
        batch = batch._replace(branches=branches)
    if batch.branches is not None or any(len(trees) > 1 for trees in rows):
        batch = batch._replace(segments=segments, positions=positions)
    parts = [
        Part(window, row, np.array(places[row][first : first + n]) if each else slice(first, first + n))
        for window, row, first, n in whose
    ]
    return Packed(batch, None if each else at, parts)
