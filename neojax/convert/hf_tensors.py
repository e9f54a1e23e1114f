"""Which tensor of a Hugging Face GPT-Neo or GPT-2 holds which parameter, and how its axes lie.

An entry is (tensor, dimensions of its axes): ``heads*head_dim`` is one axis over both. With a third part, the last
axis is the n-th of three equal parts, as in GPT-2's fused `c_attn`. Tensors of a block are in ``transformer.h.N``.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from neojax.convert.place import Index, Piece
from neojax.convert.tensor_files import TensorFiles
from neojax.errors import NeojaxError

PREFIX = "transformer."
OUTPUT = "lm_head.weight"
# Buffers that older versions of transformers saved with the weights.
BUFFERS = re.compile(r"(h\.\d+\.attn\.(attention\.)?(bias|masked_bias)|.*rotary_emb\.inv_freq)")
CHUNK = 1 << 26  # bytes of a tensor that are read at once

_COMMON = {
    "wte": ("wte.weight", "vocab embd"),
    "wpe": ("wpe.weight", "positions embd"),
    "lm_head": (OUTPUT, "vocab embd"),
    "norm_f.scale": ("ln_f.weight", "embd"),
    "norm_f.bias": ("ln_f.bias", "embd"),
    "norm_1.scale": ("ln_1.weight", "embd"),
    "norm_1.bias": ("ln_1.bias", "embd"),
    "norm_2.scale": ("ln_2.weight", "embd"),
    "norm_2.bias": ("ln_2.bias", "embd"),
    "mlp.up_bias": ("mlp.c_fc.bias", "mlp"),
    "mlp.down_bias": ("mlp.c_proj.bias", "embd"),
}
TENSORS: dict[str, dict[str, tuple]] = {
    "gpt_neo": {
        **_COMMON,
        "attn.query": ("attn.attention.q_proj.weight", "heads*head_dim embd"),
        "attn.key": ("attn.attention.k_proj.weight", "heads*head_dim embd"),
        "attn.value": ("attn.attention.v_proj.weight", "heads*head_dim embd"),
        "attn.out": ("attn.attention.out_proj.weight", "embd heads*head_dim"),
        "attn.out_bias": ("attn.attention.out_proj.bias", "embd"),
        "mlp.up": ("mlp.c_fc.weight", "mlp embd"),
        "mlp.down": ("mlp.c_proj.weight", "embd mlp"),
    },
    "gpt2": {
        **_COMMON,
        "attn.query": ("attn.c_attn.weight", "embd heads*head_dim", 0),
        "attn.key": ("attn.c_attn.weight", "embd heads*head_dim", 1),
        "attn.value": ("attn.c_attn.weight", "embd heads*head_dim", 2),
        "attn.query_bias": ("attn.c_attn.bias", "heads*head_dim", 0),
        "attn.key_bias": ("attn.c_attn.bias", "heads*head_dim", 1),
        "attn.value_bias": ("attn.c_attn.bias", "heads*head_dim", 2),
        "attn.out": ("attn.c_proj.weight", "heads*head_dim embd"),
        "attn.out_bias": ("attn.c_proj.bias", "embd"),
        "mlp.up": ("mlp.c_fc.weight", "embd mlp"),
        "mlp.down": ("mlp.c_proj.weight", "mlp embd"),
    },
}


@dataclass(frozen=True)
class Place:
    """Where a piece is kept: part `part` of `parts` of the last axis of `tensor`, whose axes run over `axes`."""

    piece: Piece
    tensor: str
    axes: tuple[tuple[str, ...], ...]
    part: int = 0
    parts: int = 1

    @property
    def order(self) -> list[int]:
        """The piece's dimensions in the order in which the tensor has them."""
        return [self.piece.dims.index(d) for axis in self.axes for d in axis]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the piece's part of the tensor."""
        sizes = dict(zip(self.piece.dims, self.piece.shape))
        return tuple(math.prod(sizes[d] for d in axis) for axis in self.axes)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return (*self.shape[:-1], self.shape[-1] * self.parts) if self.axes else ()

    def read(self, files: TensorFiles, name: str, index: Index) -> np.ndarray:
        """The part `index` of the piece in float32, from tensor `name` of `files`, `CHUNK` bytes at a time."""
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
        """As `read`, with the dimensions in the tensor's order."""
        sizes = dict(zip(self.piece.dims, self.piece.shape))
        wanted = iter(index)
        outer, inner, shape = [], [], []
        for i, axis in enumerate(self.axes):
            rest = math.prod(sizes[d] for d in axis[1:])  # the axis is read over its first dimension
            offset = self.part * self.shape[-1] if i == len(self.axes) - 1 else 0
            first = next(wanted)
            outer.append(slice(offset + first.start * rest, offset + first.stop * rest))
            inner += [slice(None), *(next(wanted) for _ in axis[1:])]
            shape += [first.stop - first.start, *(sizes[d] for d in axis[1:])]
        return files.read(name, tuple(outer)).reshape(shape)[tuple(inner)]

    def write(self, value: np.ndarray) -> np.ndarray:
        """The piece `value` as its part of the tensor."""
        return np.ascontiguousarray(value.transpose(self.order)).reshape(self.shape)


def places(kind: str, pieces: Iterable[Piece]) -> list[Place]:
    """Where a model of `kind` keeps each of `pieces`."""
    found = []
    for piece in pieces:
        tensor, axes, *part = TENSORS[kind][piece.role]
        where = PREFIX if piece.layer is None else f"{PREFIX}h.{piece.layer}."
        where = "" if tensor == OUTPUT else where
        split = tuple(tuple(axis.split("*")) for axis in axes.split())
        found.append(Place(piece, where + tensor, split, *([part[0], 3] if part else ())))
    return found


def by_tensor(found: Iterable[Place]) -> dict[str, list[Place]]:
    """Tensor -> the places in it, in the order of its parts."""
    tensors = defaultdict(list)
    for place in found:
        tensors[place.tensor].append(place)
    return {name: sorted(inside, key=lambda p: p.part) for name, inside in tensors.items()}


def match(found: Iterable[Place], files: TensorFiles, folder: object) -> dict[str, str]:
    """Tensor -> its name in `files`, which may lack the prefix.

    Old buffers, and an output table that is only the embedding again, are left out. Raises `NeojaxError` where a tensor is
    missing, has another shape, or is one that the model does not have.
    """
    wanted = {place.tensor: place.tensor_shape for place in found}
    present = {_canonical(name): name for name in files.shapes}
    present = {name: own for name, own in present.items() if not BUFFERS.fullmatch(name.removeprefix(PREFIX))}
    missing = [name for name in wanted if name not in present]
    if missing:
        raise NeojaxError(
            f"{folder} has no tensor {missing[0]}{_more(missing)}, which its config.json asks for; "
            "is the file whole and of this model?"
        )
    for name, shape in wanted.items():
        have = files.shapes[present[name]]
        if have != shape:
            raise NeojaxError(
                f"{files.file[present[name]]}: {name} has shape {list(have)}, but by config.json it has {list(shape)}"
            )
    extra = [name for name in present if name not in wanted and name != OUTPUT]
    if extra:
        raise NeojaxError(
            f"{files.file[present[extra[0]]]} holds {extra[0]}{_more(extra)}, which the model of config.json has not"
        )
    if OUTPUT in present and OUTPUT not in wanted:
        _check_tied(files, present[f"{PREFIX}wte.weight"], present[OUTPUT])
    return {name: present[name] for name in wanted}


def _canonical(name: str) -> str:
    return name if name == OUTPUT or name.startswith(PREFIX) else PREFIX + name


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
            f"{files.file[output]}: {OUTPUT} differs from {table}, but config.json ties them; "
            'add "tie_word_embeddings": false to it if the model has an output table of its own'
        )


def sizes(tensors: Mapping[str, list[Place]]) -> dict[str, int]:
    """Tensor -> its bytes in float32."""
    return {name: 4 * math.prod(inside[0].tensor_shape) for name, inside in tensors.items()}
