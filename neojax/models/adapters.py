"""LoRA: which matrices of a model have a low-rank addition, what it is made of, and what stays as it is.

The matrix `blocks.0.attn.query` has the further parameters `blocks.0.attn.query.lora_a` and `.lora_b`, and
the module binds all three as one `layout.named.LowRank`. Where transformers keeps several matrices in one
tensor, such as the queries, keys and values of GPT-NeoX, they share one `lora_a`, as in a low-rank addition
to that tensor. Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from neojax.config import LoraConfig
from neojax.errors import NeojaxError
from neojax.layout.mesh import Layout
from neojax.layout.named import Constant, LowRank, Quantized, Uniform
from neojax.models.families import HuggingFace
from neojax.models.matrices import SUMMED, narrow
from neojax.models.selection import Dims, is_adapter, role_of, selected, untrained

A, B = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class Adapters:
    """The low-rank additions of a model.

    lora: what was asked for; `matrices`: (name of a matrix, name of its `lora_a`); `frozen`: the parameters
    that are not trained.
    """

    lora: LoraConfig
    matrices: tuple[tuple[str, str], ...]
    frozen: frozenset[str]

    @staticmethod
    def of(lora: LoraConfig, names: HuggingFace | None, dims: Dims) -> "Adapters":
        """The additions that `lora` asks for, to a model whose parameters have the dimension names `dims`.
        Raises `NeojaxError` where it names what is not there."""
        able = {
            name: own
            for name, own in dims.items()
            if _inner(own) in SUMMED and role_of(name) != name and "experts" not in own
        }
        targets = selected(lora.targets, able, "train.lora.targets", what="matrix of a block")
        if not targets:
            raise NeojaxError("train.lora.targets is empty; name matrices, such as [attn.query, attn.value]")
        if twice := sorted(targets & selected(lora.whole, dims, "train.lora.whole")):
            raise NeojaxError(
                f"train.lora.whole and train.lora.targets both name {twice[0]}; a matrix is trained whole or "
                "by an addition, leave it out of one"
            )
        matrices = tuple((name, _shared(name, names) + A) for name in dims if name in targets)
        frozen = untrained(lora, dims)
        return Adapters(lora, matrices, frozen)

    @property
    def rank(self) -> int:
        """The size of `rank`."""
        return self.lora.rank

    @property
    def scale(self) -> float:
        """How often every addition counts."""
        return self.lora.alpha / (self.rank**0.5 if self.lora.rs else self.rank)

    def dims(self, own: Dims) -> dict[str, tuple[str, ...]]:
        """Name -> dimension names of the parameters of the additions, `own` being those of the model."""
        found = {}
        for name, a in self.matrices:
            layers, inner = own[name][: own[name].index(_inner(own[name])[0])], _inner(own[name])
            summed = SUMMED[inner]
            found[a] = (*layers, *summed, "rank")
            found[name + B] = (*layers, "rank", *(dim for dim in inner if dim not in summed))
        return found

    def shapes(self, own: Dims, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Name -> shape of these parameters; `shapes` are those of the model's own."""
        found, dims = {}, self.dims(own)
        for name, a in self.matrices:
            sizes = {**dict(zip(own[name], shapes[name])), "rank": self.rank}
            for each in (a, name + B):
                found[each] = tuple(sizes[dim] for dim in dims[each])
        return found

    def initial(self, name: str, dims: tuple[str, ...], shape: tuple[int, ...]) -> Uniform | Constant:
        """How a parameter of an addition is drawn: `lora_b` is zero, so that the model begins as it was, and
        `lora_a` as PEFT draws it (Kaiming uniform with a = sqrt(5))."""
        if name.endswith(B):
            return Constant(0.0)
        sizes = dict(zip(dims, shape))
        return Uniform(math.prod(n for dim, n in sizes.items() if dim not in ("layers", "rank")) ** -0.5)

    def joined(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters by name with every addition in the value of its matrix."""
        joined = {name: value for name, value in params.items() if not is_adapter(name)}
        for name, a in self.matrices:
            if not isinstance(joined[name], LowRank):
                seed = zlib.crc32(role_of(a).encode()) & 0x7FFFFFFF
                parts = joined[name], params[a], params[name + B]
                joined[name] = LowRank(*parts, self.scale, self.lora.dropout, seed)
        return joined

    def apart(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The reverse of `joined`."""
        found = dict(values)
        for name, a in self.matrices:
            value = values[name]
            if isinstance(value, LowRank):
                found |= {name: value.base, a: value.a, name + B: value.b}
        return found

    def kept(self, name: str, dims: tuple[str, ...]) -> str:
        """The type that parameter `name` is kept in: of frozen matrices `base`, but int8 only within blocks,
        bfloat16 elsewhere; of all else float32."""
        if name not in self.frozen or _inner(dims) not in SUMMED:
            return "float32"
        return "bfloat16" if self.lora.base == "int8" and role_of(name) == name else self.lora.base

    def narrowed(self, name: str, dims: tuple[str, ...], value: Any) -> Any:
        """The value of a parameter of the model in the type that it is kept in."""
        kept = self.kept(name, dims)
        return value if kept == "float32" else narrow(value, dims, None, kept)

    def spec(self, name: str, dims: tuple[str, ...], spec: jax.ShapeDtypeStruct) -> Any:
        """The shape, type and layout in which a parameter is kept that in float32 has those of `spec`."""
        kept = self.kept(name, dims)
        if kept != "int8":
            return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(kept), sharding=spec.sharding)
        summed = SUMMED[_inner(dims)]
        shape = tuple(1 if dim in summed else n for dim, n in zip(dims, spec.shape))
        assert isinstance(spec.sharding, NamedSharding)
        parts = PartitionSpec(*(part if n > 1 else None for part, n in zip(spec.sharding.spec, shape)))
        scale = NamedSharding(spec.sharding.mesh, parts)
        return Quantized(
            jax.ShapeDtypeStruct(spec.shape, jnp.int8, sharding=spec.sharding),  # type: ignore[arg-type]
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=scale),  # type: ignore[arg-type]
        )

    def stored(self, own: Dims, specs: Mapping[str, jax.ShapeDtypeStruct], layout: Layout) -> dict[str, Any]:
        """All parameters as they are stored: the model's, of which `specs` are those in float32, and the
        additions'. Raises `NeojaxError` where one of these cannot be laid out."""
        found = {name: self.spec(name, own[name], spec) for name, spec in specs.items()}
        shapes = self.shapes(own, {name: spec.shape for name, spec in specs.items()})
        for name, dims in self.dims(own).items():
            what = f"parameter {name}"
            layout.spec(dims, shapes[name], what=what)
            sharding = layout.sharding(dims, shapes[name], stored=True, what=what)
            found[name] = jax.ShapeDtypeStruct(shapes[name], jnp.float32, sharding=sharding)
        return found


def _inner(dims: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dim for dim in dims if dim != "layers")


def _shared(name: str, names: HuggingFace | None) -> str:
    """The name of what a matrix shares its `lora_a` with: its own, or those of all that are in one tensor."""
    outer, _, _ = name.rpartition(".")
    role = role_of(name)
    tensors = {} if names is None else names.tensors
    tensor = tensors.get(role, ("", ""))[0]
    together = [own.rpartition(".")[2] for own, (its, _) in tensors.items() if its == tensor]
    return f"{outer}.{'_'.join(together)}" if len(together) > 1 else name
