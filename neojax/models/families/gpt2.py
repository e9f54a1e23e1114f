"""GPT-2: as GPT-Neo, with biased and scaled attention that is global in every layer.

Facts: `GPT2Config` and `GPT2LMHeadModel` of transformers.
"""

from neojax.models.families.decoders import classes
from neojax.models.families.family import Family, HuggingFace
from neojax.models.families.gpt_neo import COMMON, build

FAMILY = Family(
    build,
    HuggingFace(
        model_type="gpt2",
        **classes("GPT2", "GPT2LMHeadModel"),
        keys={
            "vocab_size": ("n_vocab", 50257),
            "n_positions": ("n_ctx", 1024),
            "n_embd": ("n_embd", 768),
            "n_layer": ("n_layer", 12),
            "n_head": ("attention.heads", 12),
            "n_inner": ("mlp.width", None),
            "activation_function": ("mlp.activation", "gelu_new"),
            "layer_norm_epsilon": ("norm.epsilon", 1e-5),
            "embd_pdrop": ("embedding.dropout", 0.1),
            "attn_pdrop": ("attention.dropout", 0.1),
            "resid_pdrop": ("dropout", 0.1),
            "scale_attn_weights": ("attention.scale", True),
            "tie_word_embeddings": ("embedding.tied", True),
        },
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        telltale="n_embd",
        tensors={
            **COMMON,
            "attn.query": ("attn.c_attn.weight", "embd 0/3*heads*head_dim"),
            "attn.key": ("attn.c_attn.weight", "embd 1/3*heads*head_dim"),
            "attn.value": ("attn.c_attn.weight", "embd 2/3*heads*head_dim"),
            "attn.query_bias": ("attn.c_attn.bias", "0/3*heads*head_dim"),
            "attn.key_bias": ("attn.c_attn.bias", "1/3*heads*head_dim"),
            "attn.value_bias": ("attn.c_attn.bias", "2/3*heads*head_dim"),
            "attn.out": ("attn.c_proj.weight", "heads*head_dim embd"),
            "attn.out_bias": ("attn.c_proj.bias", "embd"),
            "mlp.up": ("mlp.c_fc.weight", "embd mlp"),
            "mlp.down": ("mlp.c_proj.weight", "mlp embd"),
        },
    ),
)
