"""A block: attention and an MLP as residual branches, in one of the orders that models put norm and branch
in."""

from collections.abc import Mapping, Set

import jax
from flax import nnx

from neojax.config import EXPERTS, ModelConfig
from neojax.layout.named import Dropout
from neojax.models.attention import Attention
from neojax.models.cache import Cache
from neojax.models.compute import Compute
from neojax.models.context import Context
from neojax.models.experts import Experts
from neojax.models.losses import Sums
from neojax.models.mlp import MLP
from neojax.models.norms import Identity, branch_gate, branch_norm


class Block(nnx.Module):
    """Two residual branches, attention and MLP, each with a norm, in the order `model.norm.order`:

    | order | what is computed |
    |-|-|
    | `pre` | x = x + attention(norm_1(x)), then x + mlp(norm_2(x)): GPT-2, GPT-Neo |
    | `post` | x = norm_1(x + attention(x)), then norm_2(x + mlp(x)): the first Transformer, BERT |
    | `parallel` | x + attention(norm_1(x)) + mlp(norm_2(x)): GPT-NeoX |
    | `parallel_shared` | x + attention(norm_1(x)) + mlp(norm_1(x)): GPT-J |

    `kinds` are the kinds of the layers that use these weights (`ModelConfig.layers`): their attention types,
    and whether experts stand in the MLP's place, which is then so for all of them. A layer of type none has
    no attention: x goes on to the MLP as it is (gpt-neo added x to itself there, a slip that only rescales x
    against later branches). Macaron, https://arxiv.org/abs/1906.02762: x + mlp_macaron(x) / 2 comes first,
    without normalisation as in gpt-neo, and the last MLP is halved too. Facts: gpt-neo's
    `models/gpt2/gpt2.py`.
    """

    def __init__(self, config: ModelConfig, kinds: Set[str], sizes: Mapping[str, int], compute: Compute):
        self.order = config.norm.order
        self.rate = config.dropout
        attention = {kind.removesuffix(EXPERTS) for kind in kinds}
        attends = bool(attention - {"none"})
        self.mlp_macaron = MLP(config, sizes) if config.mlp.macaron else None
        shares = self.order == "parallel_shared"
        self.norm_1 = branch_norm(config, sizes) if attends or shares else Identity()
        self.attn = Attention(config, attention, sizes, compute) if attends else None
        self.gate_1 = branch_gate(config, sizes) if attends else Identity()
        self.norm_2 = Identity() if shares else branch_norm(config, sizes)
        has_experts = any(kind.endswith(EXPERTS) for kind in kinds)
        self.mlp = None if has_experts else MLP(config, sizes)
        self.experts = Experts(config, sizes) if has_experts else None
        self.gate_2 = branch_gate(config, sizes)

    def __call__(
        self,
        x: jax.Array,
        kind: str,
        context: Context,
        cache: Cache | None,
        dropout_key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None, Sums]:
        """x [batch, sequence, embd] -> the same shape, the cache of a layer of type `kind` with these tokens,
        and sums."""
        kind = kind.removesuffix(EXPERTS)
        keys = [None] * 3 if dropout_key is None else list(jax.random.split(dropout_key, 3))
        if self.mlp_macaron is not None:
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, 3)
            x = x + residual_dropout(self.mlp_macaron(x), self.rate, key) / 2
        attends = self.attn is not None and kind != "none"
        if not attends:
            cache = None if context.slots is None and cache is None else ()

        def attention(x: jax.Array) -> jax.Array:
            nonlocal cache
            assert self.attn is not None
            y, cache = self.attn(x, kind, context, cache, keys[0])
            return self.gate_1(residual_dropout(y, self.rate, keys[1]))

        sums: Sums = {}

        def mlp(x: jax.Array) -> jax.Array:
            if self.experts is not None:
                key = None if dropout_key is None else jax.random.fold_in(dropout_key, 4)
                y, found = self.experts(x, context, key)
                sums.update(found)
            else:
                assert self.mlp is not None
                y = self.mlp(x)
            y = residual_dropout(y, self.rate, keys[2])
            return self.gate_2(y if self.mlp_macaron is None else y / 2)

        if self.order == "pre":
            x = x + attention(self.norm_1(x)) if attends else x
            x = x + mlp(self.norm_2(x))
        elif self.order == "post":
            x = self.norm_1(x + attention(x)) if attends else x
            x = self.norm_2(x + mlp(x))
        else:
            first = self.norm_1(x)
            second = first if self.order == "parallel_shared" else self.norm_2(x)
            x = (x + attention(first) if attends else x) + mlp(second)
        return x, cache, sums


def residual_dropout(
    x: jax.Array, rate: float, key: jax.Array | None, dims: str = "batch sequence embd"
) -> jax.Array:
    """Dropout on x [`dims`]; nothing without a key."""
    return x if key is None or not rate else Dropout(rate, key)(x, dims)
