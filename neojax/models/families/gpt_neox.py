"""GPT-NeoX and Pythia: biased and scaled global attention beside the MLP, rotary positions, an output table
of its own.

Facts: `GPTNeoXConfig` and `GPTNeoXForCausalLM` of transformers; EleutherAI's gpt-neox.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError
from neojax.models.families import rope
from neojax.models.families.decoders import classes
from neojax.models.families.family import Family, HuggingFace
from neojax.models.families.gpt_neo import build

ROTARY_SHARE = 0.25  # of a head, where a file does not say; transformers' default
ORDERS = {True: "parallel", False: "pre"}  # use_parallel_residual -> order of norm and branch
FLAGS = ("use_parallel_residual", "attention_bias")


def read(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The order of the block, and rotary positions in the keys of transformers 5 or before."""
    parallel, biased = (raw.get(key, True) for key in FLAGS)
    for key, value in zip(FLAGS, (parallel, biased)):
        if not isinstance(value, bool):
            raise NeojaxError(f"{source}: {key}={value!r}: expected true or false")
    said = {"partial_rotary_factor": raw.get("rotary_pct"), "rope_theta": raw.get("rotary_emb_base")}
    said |= rope.rope(raw, source)
    share = said["partial_rotary_factor"]
    try:
        share = float(ROTARY_SHARE if share is None else share)
        width = raw.get("hidden_size", 6144) // raw.get("num_attention_heads", 64)
    except (TypeError, ValueError, ZeroDivisionError):
        raise NeojaxError(f"{source}: rotary positions {said}: expected numbers") from None
    return {
        "norm.order": ORDERS[parallel],
        "attention.bias": biased,
        "attention.out_bias": biased,
        "positions.rotary_dims": int(width * share),
        **rope.read(said, raw.get("max_position_embeddings", 2048), source),
        "embedding.dropout": raw.get("hidden_dropout", 0.0),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys of transformers 5, and those that transformers 4 reads. Raises `NeojaxError` for what has
    none."""
    if config.norm.order not in ORDERS.values():
        raise NeojaxError(
            f"model.norm.order={config.norm.order} cannot be exported: transformers' gpt_neox has no such "
            "option"
        )
    if config.embedding.dropout != config.dropout:
        raise NeojaxError(
            f"model.embedding.dropout={config.embedding.dropout} cannot be exported beside model.dropout="
            f"{config.dropout}: transformers' gpt_neox has one rate for both"
        )
    if config.attention.bias != config.attention.out_bias:
        raise NeojaxError(
            f"model.attention.bias={config.attention.bias} cannot be exported beside "
            f"model.attention.out_bias={config.attention.out_bias}: transformers' gpt_neox has biases in "
            "both or in neither"
        )
    width = config.head_dim
    dims = config.positions.rotary_dims or width
    share = dims / width
    if int(width * share) < dims:  # as readers have it, who cut off; 26 / 46 of 46 is less than 26
        share = math.nextafter(share, 1.0)
    return {
        "intermediate_size": config.mlp_dim,
        "use_parallel_residual": config.norm.order == "parallel",
        **rope.write(config, partial_rotary_factor=share),
        "rotary_pct": share,
        "rotary_emb_base": config.positions.base,
        "attention_bias": config.attention.bias,
    }


FAMILY = Family(
    build,
    HuggingFace(
        model_type="gpt_neox",
        **classes(
            "GPTNeoX",
            "GPTNeoXForCausalLM",
            read=read,
            write=write,
            written=(
                "norm.order",
                "positions.rotary_dims",
                *rope.WRITTEN,
                "embedding.dropout",
                "attention.bias",
                "attention.out_bias",
            ),
        ),
        keys={
            "vocab_size": ("n_vocab", 50432),
            "max_position_embeddings": ("n_ctx", 2048),
            "hidden_size": ("n_embd", 6144),
            "num_hidden_layers": ("n_layer", 44),
            "num_attention_heads": ("attention.heads", 64),
            "intermediate_size": ("mlp.width", 24576),
            "hidden_act": ("mlp.activation", "gelu"),
            "layer_norm_eps": ("norm.epsilon", 1e-5),
            "attention_dropout": ("attention.dropout", 0.0),
            "hidden_dropout": ("dropout", 0.0),
            "tie_word_embeddings": ("embedding.tied", False),
        },
        telltale="use_parallel_residual",
        prefix="gpt_neox.",
        block="layers.{}.",
        output="embed_out.weight",
        other_outputs=("lm_head.weight",),
        buffers=re.compile(r"layers\.\d+\.attention\.(bias|masked_bias)|.*rotary_emb\.inv_freq"),
        tensors={
            "wte": ("embed_in.weight", "vocab embd"),
            "lm_head": ("embed_out.weight", "vocab embd"),
            "norm_f.scale": ("final_layer_norm.weight", "embd"),
            "norm_f.bias": ("final_layer_norm.bias", "embd"),
            "norm_1.scale": ("input_layernorm.weight", "embd"),
            "norm_1.bias": ("input_layernorm.bias", "embd"),
            "norm_2.scale": ("post_attention_layernorm.weight", "embd"),
            "norm_2.bias": ("post_attention_layernorm.bias", "embd"),
            "attn.query": ("attention.query_key_value.weight", "heads*0/3*head_dim embd"),
            "attn.key": ("attention.query_key_value.weight", "heads*1/3*head_dim embd"),
            "attn.value": ("attention.query_key_value.weight", "heads*2/3*head_dim embd"),
            "attn.query_bias": ("attention.query_key_value.bias", "heads*0/3*head_dim"),
            "attn.key_bias": ("attention.query_key_value.bias", "heads*1/3*head_dim"),
            "attn.value_bias": ("attention.query_key_value.bias", "heads*2/3*head_dim"),
            "attn.out": ("attention.dense.weight", "embd heads*head_dim"),
            "attn.out_bias": ("attention.dense.bias", "embd"),
            "mlp.up": ("mlp.dense_h_to_4h.weight", "mlp embd"),
            "mlp.up_bias": ("mlp.dense_h_to_4h.bias", "mlp"),
            "mlp.down": ("mlp.dense_4h_to_h.weight", "embd mlp"),
            "mlp.down_bias": ("mlp.dense_4h_to_h.bias", "embd"),
        },
    ),
)
