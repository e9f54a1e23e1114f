"""GPT-Neo: learned positions, groups of global and local pre-norm blocks, output tied to the embedding.

It has the options of gpt-neo's configurations too, which transformers has not. Facts: gpt-neo's
`models/gpt2/gpt2.py`; `GPTNeoConfig` and `GPTNeoForCausalLM` of transformers.
"""

from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig, expand_attention_types
from neojax.errors import NeojaxError
from neojax.models.block import Block
from neojax.models.compute import Compute
from neojax.models.embedding import Embedding
from neojax.models.encoder_head import EncoderHead
from neojax.models.families.decoders import classes
from neojax.models.families.family import Family, HuggingFace, Parts
from neojax.models.head import LanguageHead
from neojax.models.stack import Stack


def build(config: ModelConfig, sizes: Mapping[str, int], compute: Compute) -> Parts:
    """The three parts of a GPT-Neo."""
    head = LanguageHead if "lm" in config.head.kinds else EncoderHead
    return *trunk(config, sizes, compute), head(config, sizes)


def trunk(config: ModelConfig, sizes: Mapping[str, int], compute: Compute) -> tuple[Embedding, Stack]:
    """What stands before the head: the embedding and the stack."""
    stack = Stack(
        lambda kinds, sizes: Block(config, kinds, sizes, compute),
        config.layers,
        sizes,
        compute,
        groups=config.layer_groups if config.share_parameters else 0,
        inner=config.inner_layers,
    )
    return Embedding(config, sizes, compute), stack


def read(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`attention_types` in either form that files have it in; a list of layers where it is missing."""
    types, layers = raw.get("attention_types"), raw.get("attention_layers")
    if types is None:
        return {"attention.types": layers or ["global", "local"]}
    if layers is not None and list(expand_attention_types(types, len(layers))) != layers:
        raise NeojaxError(
            f"{source}: attention_types {types} and attention_layers {layers} disagree; mend one"
        )
    return {"attention.types": types}


def write(config: ModelConfig) -> dict[str, Any]:
    """Both forms of the attention types."""
    layers = list(config.attention_layers)
    return {"attention_types": [[layers, 1]], "attention_layers": layers}


COMMON = {
    "wte": ("wte.weight", "vocab embd"),
    "wpe": ("wpe.weight", "positions embd"),
    "lm_head": ("lm_head.weight", "vocab embd"),
    "norm_f.scale": ("ln_f.weight", "embd"),
    "norm_f.bias": ("ln_f.bias", "embd"),
    "norm_1.scale": ("ln_1.weight", "embd"),
    "norm_1.bias": ("ln_1.bias", "embd"),
    "norm_2.scale": ("ln_2.weight", "embd"),
    "norm_2.bias": ("ln_2.bias", "embd"),
    "mlp.up_bias": ("mlp.c_fc.bias", "mlp"),
    "mlp.down_bias": ("mlp.c_proj.bias", "embd"),
}
"""The tensors that GPT-2 and GPT-Neo call alike."""

FAMILY = Family(
    build,
    HuggingFace(
        model_type="gpt_neo",
        **classes("GPTNeo", "GPTNeoForCausalLM", read=read, write=write),
        keys={
            "vocab_size": ("n_vocab", 50257),
            "max_position_embeddings": ("n_ctx", 2048),
            "hidden_size": ("n_embd", 2048),
            "num_layers": ("n_layer", 24),
            "num_heads": ("attention.heads", 16),
            "intermediate_size": ("mlp.width", None),
            "window_size": ("attention.window", 256),
            "activation_function": ("mlp.activation", "gelu_new"),
            "layer_norm_epsilon": ("norm.epsilon", 1e-5),
            "embed_dropout": ("embedding.dropout", 0.0),
            "attention_dropout": ("attention.dropout", 0.0),
            "resid_dropout": ("dropout", 0.0),
            "tie_word_embeddings": ("embedding.tied", True),
        },
        aliases={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
        attention=("global", "local"),
        telltale="attention_types",
        tensors={
            **COMMON,
            "attn.query": ("attn.attention.q_proj.weight", "heads*head_dim embd"),
            "attn.key": ("attn.attention.k_proj.weight", "heads*head_dim embd"),
            "attn.value": ("attn.attention.v_proj.weight", "heads*head_dim embd"),
            "attn.out": ("attn.attention.out_proj.weight", "embd heads*head_dim"),
            "attn.out_bias": ("attn.attention.out_proj.bias", "embd"),
            "mlp.up": ("mlp.c_fc.weight", "mlp embd"),
            "mlp.down": ("mlp.c_proj.weight", "embd mlp"),
        },
    ),
)
