"""The parameters of a model piece by piece: what one layer has of one role, wherever the model keeps it.

Files hold layers one by one, and queries, keys and values each for itself or all in one; a model may stack
its layers and join the three. A piece has the same role and layer in every form, so that weights go from one
to another by these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from neojax.models.attention import JOINED
from neojax.models.transformer import Transformer


@dataclass(frozen=True)
class Piece:
    """A parameter, or the part of it that belongs to one layer and one role.

    `param`: the parameter's name in the model; `at`: the dimensions of it of which this is one entry, (name,
    index), such as its repetition along `layers`; `role`: its name within the block (attn.query), or in the
    model where it belongs to none; `layer`: the number of its layer or None. `dims` and `shape` are without
    the dimensions of `at`, and the shape is without padding of the vocabulary.
    """

    param: str
    at: tuple[tuple[str, int], ...]
    role: str
    layer: int | None
    dims: tuple[str, ...] = field(compare=False)
    shape: tuple[int, ...] = field(compare=False)


def pieces(model: Transformer) -> Iterator[Piece]:
    """All pieces of `model`, those of one parameter together, in the order of `params()`."""
    for path, param in model.paths():
        name = ".".join(map(str, path))
        sizes = dict(zip(param.dims, param.get_value().shape))
        if "vocab" in sizes:
            sizes["vocab"] = model.config.n_vocab
        is_block = path[0] == "blocks"
        inner = path[2:] if is_block else path
        for repeat in range(sizes["layers"]) if "layers" in sizes else [None]:
            layer = model.stack.layer(path[1], repeat or 0) if is_block else None
            at = () if repeat is None else (("layers", repeat),)
            for role, more in _roles(inner):
                fixed = {**dict(at), **dict(more)}
                dims = tuple(dim for dim in param.dims if dim not in fixed)
                yield Piece(name, at + more, role, layer, dims, tuple(sizes[dim] for dim in dims))


def by_param(model: Transformer) -> dict[str, list[Piece]]:
    """Parameter -> its pieces."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces(model):
        found.setdefault(piece.param, []).append(piece)
    return found


def _roles(inner: tuple) -> Iterator[tuple[str, tuple[tuple[str, int], ...]]]:
    """The roles that a parameter of a block plays, and which of its entries plays each."""
    *outer, last = map(str, inner)
    if last not in JOINED:
        yield ".".join([*outer, last]), ()
        return
    for number, projection in enumerate(JOINED[last]):
        yield ".".join([*outer, projection]), (("projections", number),)
