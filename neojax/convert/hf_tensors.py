"""Which tensor of a Hugging Face directory holds which part of a model, by the table of the model's
family."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from neojax.config import ModelConfig
from neojax.convert.place import Index
from neojax.convert.tensor_files import FLOATS, TensorFiles
from neojax.errors import NeojaxError
from neojax.models.families import HuggingFace
from neojax.models.pieces import Piece

CHUNK = 1 << 26  # bytes of a tensor that are read at once

Factor = str | tuple[int, int]
"""A dimension, or part i of n as (i, n)."""


def axes_of(text: str) -> tuple[tuple[Factor, ...], ...]:
    """The axes of a tensor in the grammar of `models.families.family.HuggingFace`: "embd
    0/3*heads*head_dim"."""

    def factor(word: str) -> Factor:
        part, slash, parts = word.partition("/")
        return (int(part), int(parts)) if slash else word

    return tuple(tuple(map(factor, axis.split("*"))) for axis in text.split())


@dataclass(frozen=True)
class Place:
    """Where a piece is kept: within `tensor`, each of whose axes runs over several factors, the fastest
    last."""

    piece: Piece
    tensor: str
    axes: tuple[tuple[Factor, ...], ...]

    @property
    def order(self) -> list[int]:
        """The piece's dimensions in the order in which the tensor has them."""
        return [self.piece.dims.index(f) for axis in self.axes for f in axis if isinstance(f, str)]

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(math.prod(map(self._size, axis)) for axis in self.axes)

    def _size(self, factor: Factor) -> int:
        return self.piece.shape[self.piece.dims.index(factor)] if isinstance(factor, str) else factor[1]

    def read(self, files: TensorFiles, name: str, index: Index) -> np.ndarray:
        """The part `index` of the piece in float32, from tensor `name` of `files`, `CHUNK` bytes at a
        time."""
        if not self.axes:
            return np.asarray(files.read(name, ()), np.float32)
        out = np.empty([s.stop - s.start for s in index], np.float32)
        view = out.transpose(self.order)
        first, *others = (index[i] for i in self.order)
        rows = max(1, CHUNK // max(1, view[:1].nbytes))
        for start in range(first.start, first.stop, rows):
            stop = min(start + rows, first.stop)
            chunk = self._read(files, name, (slice(start, stop), *others))
            view[start - first.start : stop - first.start] = chunk
        return out

    def _read(self, files: TensorFiles, name: str, index: Index) -> np.ndarray:
        """As `read`, with the dimensions in the tensor's order. An axis is read over a range as short as its
        first dimension, and the parts before that, make it."""
        wanted = iter(index)
        outer: list[slice] = []
        inner: list[slice | int] = []
        shape: list[int] = []
        for axis in self.axes:
            start, length = 0, math.prod(map(self._size, axis))
            is_narrowed = False
            for factor in axis:
                size = self._size(factor)
                if is_narrowed:
                    shape.append(size)
                    inner.append(next(wanted) if isinstance(factor, str) else factor[0])
                    continue
                rest = length // size
                if isinstance(factor, str):
                    own, is_narrowed = next(wanted), True
                    start, length = start + own.start * rest, (own.stop - own.start) * rest
                    shape.append(own.stop - own.start)
                    inner.append(slice(None))
                else:
                    start, length = start + factor[0] * rest, rest
            outer.append(slice(start, start + length))
        return files.read(name, tuple(outer)).reshape(shape)[tuple(inner)]

    def write(self, tensor: np.ndarray, value: np.ndarray) -> None:
        """Puts the piece `value` where it belongs in `tensor`."""
        factors = [factor for axis in self.axes for factor in axis]
        at = tuple(slice(None) if isinstance(factor, str) else factor[0] for factor in factors)
        tensor.reshape([self._size(factor) for factor in factors])[at] = value.transpose(self.order)


def places(names: HuggingFace, config: ModelConfig, pieces: Iterable[Piece]) -> list[Place]:
    """Where a model `config` of a family with these `names` keeps each of `pieces`."""
    found = []
    for piece in pieces:
        if piece.role in names.heads:
            tensor, axes = names.heads[piece.role]
            if names.output_biases and tensor in names.output_biases:
                tensor = names.output_biases[not config.embedding.tied]
            found.append(Place(piece, tensor, axes_of(axes)))
            continue
        tensor, axes = names.tensors[piece.role]
        if "kv_heads" not in piece.dims:  # every head of queries has keys and values of its own
            axes = axes.replace("kv_heads", "heads")
        own = () if piece.layer is None else divmod(piece.layer, config.inner_layers)
        block = names.block.format(*own) if own else ""
        where = "" if _is_output(names, tensor) else names.prefix + block
        found.append(Place(piece, where + tensor, axes_of(axes)))
    return found


def by_tensor(found: Iterable[Place]) -> dict[str, list[Place]]:
    """Tensor -> the places in it."""
    tensors = defaultdict(list)
    for place in found:
        tensors[place.tensor].append(place)
    return dict(tensors)


def to_write(names: HuggingFace, config: ModelConfig, pieces: Iterable[Piece]) -> dict[str, list[Place]]:
    """Tensor -> the places in it, of all that transformers writes for a model. The bias of an output table of
    its own is there under both its names, since versions differ in which counts; a model without heads has no
    prefix."""
    tensors = by_tensor(places(names, config, pieces))
    if names.output_biases and not config.embedding.tied:
        old, new = names.output_biases
        tensors |= {old: tensors[new]} if new in tensors else {}
    if names.architectures and not config.head.kinds:
        tensors = {name.removeprefix(names.prefix): inside for name, inside in tensors.items()}
    return tensors


@dataclass(frozen=True)
class Match:
    """Which tensors of a directory a model takes: `names` in its files by those in the table of the family,
    the `missing` ones of heads, which files need not have, and those of heads that it has no use for,
    `unused`."""

    names: Mapping[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def match(names: HuggingFace, found: Iterable[Place], files: TensorFiles, folder: object) -> Match:
    """What of `files`, whose tensors may lack the prefix, belongs where.

    Old buffers, and an output table that is only the embedding again, are left out. Raises `NeojaxError`
    where a tensor is missing, has another shape, or is one that the model does not have.
    """
    wanted = {place.tensor: place.tensor_shape for place in found}
    of_heads = {tensor for tensor, _ in names.heads.values()} | {*(names.output_biases or ())}
    classifies = names.output_biases is None and not of_heads.isdisjoint(wanted)
    if classifies:  # a decoder without its table of logits
        of_heads |= {names.output, names.output.replace("weight", "bias")}
    canonical = {name: _canonical(names, name, wanted) for name in files.shapes}
    # A name that is as it should be is taken before one that only stands for it.
    order = sorted(files.shapes, key=lambda name: canonical[name] == name)
    present = {canonical[name]: name for name in order}
    present = {
        name: own
        for name, own in present.items()
        if not names.buffers.fullmatch(name.removeprefix(names.prefix))
    }
    missing = [name for name in wanted if name not in present and name not in of_heads]
    if missing:
        raise NeojaxError(
            f"{folder} has no tensor {missing[0]}{_more(missing)}, which its config.json asks for; "
            "is the file whole and of this model?"
        )
    for name, shape in wanted.items():
        if name not in present:
            continue
        own = present[name]
        if own in files.others:
            raise NeojaxError(
                f"{files.file[own]}: {own} is of type {files.others[own]}, expected {', '.join(FLOATS)}"
            )
        have = files.shapes[own]
        if have != shape:
            labels = (
                " (the labels of id2label come first)" if name.startswith(("classifier.", "score.")) else ""
            )
            raise NeojaxError(
                f"{files.file[present[name]]}: {name} has shape {list(have)}, but by "
                f"config.json it has "
                f"{list(shape)}{labels}"
            )
    extra = [name for name in present if name not in wanted and (classifies or name != names.output)]
    if strange := [name for name in extra if name not in of_heads]:
        raise NeojaxError(
            f"{files.file[present[strange[0]]]} holds {strange[0]}{_more(strange)}, which the model of "
            "config.json has not"
        )
    has_table = names.output in present and names.output not in wanted and not classifies
    if has_table and (names.output_biases is None or any(bias in wanted for bias in names.output_biases)):
        _check_tied(files, present[names.prefix + names.tensors["wte"][0]], present[names.output])
    return Match(
        {name: present[name] for name in wanted if name in present},
        tuple(name for name in wanted if name not in present),
        tuple(extra),
    )


def _canonical(names: HuggingFace, name: str, wanted: Iterable[str]) -> str:
    """The name of a tensor as the table has it; that of an output bias as it is among those `wanted`."""
    if names.output_biases and name in names.output_biases:
        return next((bias for bias in names.output_biases if bias in wanted), name)
    for pattern, replacement in names.renamed:
        name = re.sub(pattern, replacement, name)
    if name in names.other_outputs:
        return names.output
    is_whole = _is_output(names, name) or name.startswith(names.prefix)
    return (
        name if is_whole or any(name == tensor for tensor, _ in names.heads.values()) else names.prefix + name
    )


def _is_output(names: HuggingFace, name: str) -> bool:
    """Whether `name` is the output table or its bias, which stand outside the prefix."""
    return name.rpartition(".")[0] == names.output.rpartition(".")[0]


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_tied(files: TensorFiles, table: str, output: str) -> None:
    shape = files.shapes[table]
    same = files.shapes[output] == shape
    rows = max(1, CHUNK // (4 * shape[1]))
    for start in range(0, shape[0] if same else 0, rows):
        block = (slice(start, min(start + rows, shape[0])), slice(0, shape[1]))
        same = same and np.array_equal(files.read(table, block), files.read(output, block))
    if not same:
        raise NeojaxError(
            f"{files.file[output]}: {output} differs from {table}, but config.json ties them; "
            'add "tie_word_embeddings": false to it if the model has an output table of its own'
        )


def sizes(tensors: Mapping[str, list[Place]]) -> dict[str, int]:
    """Tensor -> its bytes in float32."""
    return {name: 4 * math.prod(inside[0].tensor_shape) for name, inside in tensors.items()}
