"""Llama: RMSNorm, a gated MLP, rotary positions, and heads of keys and values that several of queries share.

Facts: `LlamaConfig` and `LlamaForCausalLM` of transformers.
"""

import re
from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError
from neojax.models.families import rope
from neojax.models.families.decoders import classes
from neojax.models.families.family import Family, HuggingFace
from neojax.models.families.gpt_neo import build


def read(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Biases of all of attention's projections or of none, and rotary positions."""
    said = rope.rope(raw, source)
    said.pop("partial_rotary_factor", None)  # whole heads are rotated
    return {
        "attention.out_bias": raw.get("attention_bias", False),
        **rope.read(said, raw.get("max_position_embeddings", 2048), source),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """What files say beside the keys that are one of ours. Raises `NeojaxError` for what they cannot."""
    attention = config.attention
    if attention.bias != attention.out_bias:
        raise NeojaxError(
            f"model.attention.bias={attention.bias} cannot be exported beside model.attention.out_bias="
            f"{attention.out_bias}: transformers' llama has biases in both or in neither"
        )
    if config.n_embd % attention.heads:
        raise NeojaxError(
            f"model.n_embd={config.n_embd} cannot be exported with model.attention.heads={attention.heads}: "
            "transformers' llama takes multiples only, whatever the width of a head"
        )
    return {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        **rope.write(config),
    }


FAMILY = Family(
    build,
    HuggingFace(
        model_type="llama",
        **classes(
            "Llama",
            "LlamaForCausalLM",
            of_tokens="score",
            read=read,
            write=write,
            written=("attention.out_bias", *rope.WRITTEN),
        ),
        keys={
            "vocab_size": ("n_vocab", 32000),
            "max_position_embeddings": ("n_ctx", 2048),
            "hidden_size": ("n_embd", 4096),
            "num_hidden_layers": ("n_layer", 32),
            "num_attention_heads": ("attention.heads", 32),
            "num_key_value_heads": ("attention.kv_heads", None),
            "head_dim": ("attention.head_dim", None),
            "attention_bias": ("attention.bias", False),
            "attention_dropout": ("attention.dropout", 0.0),
            "intermediate_size": ("mlp.width", 11008),
            "hidden_act": ("mlp.activation", "silu"),
            "mlp_bias": ("mlp.bias", False),
            "rms_norm_eps": ("norm.epsilon", 1e-6),
            "tie_word_embeddings": ("embedding.tied", False),
        },
        telltale="rms_norm_eps",
        prefix="model.",
        prefixes={"question_answering": "transformer."},  # as the class was before others
        block="layers.{}.",
        buffers=re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
        tensors={
            "wte": ("embed_tokens.weight", "vocab embd"),
            "lm_head": ("lm_head.weight", "vocab embd"),
            "norm_f.scale": ("norm.weight", "embd"),
            "norm_1.scale": ("input_layernorm.weight", "embd"),
            "norm_2.scale": ("post_attention_layernorm.weight", "embd"),
            "attn.query": ("self_attn.q_proj.weight", "heads*head_dim embd"),
            "attn.key": ("self_attn.k_proj.weight", "kv_heads*head_dim embd"),
            "attn.value": ("self_attn.v_proj.weight", "kv_heads*head_dim embd"),
            "attn.query_bias": ("self_attn.q_proj.bias", "heads*head_dim"),
            "attn.key_bias": ("self_attn.k_proj.bias", "kv_heads*head_dim"),
            "attn.value_bias": ("self_attn.v_proj.bias", "kv_heads*head_dim"),
            "attn.out": ("self_attn.o_proj.weight", "embd heads*head_dim"),
            "attn.out_bias": ("self_attn.o_proj.bias", "embd"),
            "mlp.up": ("mlp.up_proj.weight", "mlp embd"),
            "mlp.up_bias": ("mlp.up_proj.bias", "mlp"),
            "mlp.gate": ("mlp.gate_proj.weight", "mlp embd"),
            "mlp.gate_bias": ("mlp.gate_proj.bias", "mlp"),
            "mlp.down": ("mlp.down_proj.weight", "embd mlp"),
            "mlp.down_bias": ("mlp.down_proj.bias", "embd"),
        },
    ),
)
