"""GPT-J: attention without biases and the MLP read one norm and are added together; rotary positions turn
neighbouring features; an output table of its own with a bias.

Facts: `GPTJConfig` and `GPTJForCausalLM` of transformers.
"""

from collections.abc import Mapping
from typing import Any

from neojax.config import ModelConfig
from neojax.errors import NeojaxError
from neojax.models.families.decoders import classes
from neojax.models.families.family import Family, HuggingFace
from neojax.models.families.gpt_neo import build


def read(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """How many features of a head turn. Raises `NeojaxError` where it is not said."""
    if not isinstance(dims := raw.get("rotary_dim", 64), int):
        raise NeojaxError(f"{source}: rotary_dim={dims!r}: expected how many features of a head turn")
    return {"positions.rotary_dims": dims}


def write(config: ModelConfig) -> dict[str, Any]:
    """The same."""
    return {"rotary_dim": config.positions.rotary_dims or config.head_dim}


FAMILY = Family(
    build,
    HuggingFace(
        model_type="gptj",
        **classes(
            "GPTJ",
            "GPTJForCausalLM",
            ("ForSequenceClassification", "ForQuestionAnswering"),
            read=read,
            write=write,
            written=("positions.rotary_dims",),
        ),
        keys={
            "vocab_size": ("n_vocab", 50400),
            "n_positions": ("n_ctx", 2048),
            "n_embd": ("n_embd", 4096),
            "n_layer": ("n_layer", 28),
            "n_head": ("attention.heads", 16),
            "n_inner": ("mlp.width", None),
            "activation_function": ("mlp.activation", "gelu_new"),
            "layer_norm_epsilon": ("norm.epsilon", 1e-5),
            "embd_pdrop": ("embedding.dropout", 0.0),
            "attn_pdrop": ("attention.dropout", 0.0),
            "resid_pdrop": ("dropout", 0.0),
            "tie_word_embeddings": ("embedding.tied", False),
        },
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        telltale="rotary_dim",
        tensors={
            "wte": ("wte.weight", "vocab embd"),
            "lm_head": ("lm_head.weight", "vocab embd"),
            "lm_head_bias": ("lm_head.bias", "vocab"),
            "norm_f.scale": ("ln_f.weight", "embd"),
            "norm_f.bias": ("ln_f.bias", "embd"),
            "norm_1.scale": ("ln_1.weight", "embd"),
            "norm_1.bias": ("ln_1.bias", "embd"),
            "attn.query": ("attn.q_proj.weight", "heads*head_dim embd"),
            "attn.key": ("attn.k_proj.weight", "heads*head_dim embd"),
            "attn.value": ("attn.v_proj.weight", "heads*head_dim embd"),
            "attn.out": ("attn.out_proj.weight", "embd heads*head_dim"),
            "mlp.up": ("mlp.fc_in.weight", "mlp embd"),
            "mlp.up_bias": ("mlp.fc_in.bias", "mlp"),
            "mlp.down": ("mlp.fc_out.weight", "embd mlp"),
            "mlp.down_bias": ("mlp.fc_out.bias", "embd"),
        },
    ),
)
