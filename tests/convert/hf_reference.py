"""Models of transformers with random weights, to compare with. Import after
`pytest.importorskip("transformers")`."""

import numpy as np
import torch
from transformers import (
    AlbertConfig,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

N_VOCAB = 53  # divides by no axis, so that a split vocabulary is padded


def gpt_neo(attention_types, **changes):
    """A GPT-Neo whose `attention_types` are [[types], count] pairs."""
    layers = sum(len(types) * count for types, count in attention_types)
    sizes = {
        "vocab_size": N_VOCAB,
        "hidden_size": 24,
        "num_heads": 4,
        "max_position_embeddings": 32,
        "window_size": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return filled(
        GPTNeoForCausalLM,
        GPTNeoConfig(num_layers=layers, attention_types=attention_types, **{**sizes, **changes}),
    )


def gpt2(**changes):
    """A GPT-2 of three layers, without dropout."""
    sizes = {"vocab_size": N_VOCAB, "n_embd": 24, "n_head": 4, "n_layer": 3, "n_positions": 32}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return filled(GPT2LMHeadModel, GPT2Config(**{**sizes, **still, **changes}))


def gpt_neox(**changes):
    """A GPT-NeoX of three layers that rotates half of each head."""
    sizes = {
        "vocab_size": N_VOCAB,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 44,
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return filled(GPTNeoXForCausalLM, GPTNeoXConfig(**{**sizes, **changes}))


SIZES = {
    "vocab_size": N_VOCAB,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 13,
    "type_vocab_size": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
"""Of an encoder: odd ones where they can be."""


def bert(cls, **changes):
    """A BERT of class `cls` and three layers."""
    return filled(cls, BertConfig(**{**SIZES, "num_hidden_layers": 3, "classifier_dropout": 0.0, **changes}))


def albert(cls, **changes):
    """An ALBERT of class `cls`: two groups of two inner layers, each of which takes two turns."""
    sizes = {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2, "embedding_size": 12}
    still = {"classifier_dropout_prob": 0.0}
    return filled(cls, AlbertConfig(**{**SIZES, **sizes, **still, **changes}))


def gpt_j(**changes):
    """A GPT-J of three layers that rotates half of each head; hidden width and MLP are no powers of two."""
    sizes = {"vocab_size": N_VOCAB, "n_embd": 48, "n_head": 4, "n_layer": 3, "n_inner": 44, "n_positions": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return filled(GPTJForCausalLM, GPTJConfig(**{"rotary_dim": 6, **sizes, **ends, **changes}))


def llama(**changes):
    """A Llama of three layers in which four heads of queries read each of two of keys; heads are wider than
    their share of the hidden width, and all of attention and the MLP have biases."""
    sizes = {
        "vocab_size": N_VOCAB,
        "hidden_size": 40,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "num_hidden_layers": 3,
        "intermediate_size": 44,
        "max_position_embeddings": 32,
        "attention_bias": True,
        "mlp_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return filled(LlamaForCausalLM, LlamaConfig(**{**sizes, **changes}))


def filled(cls, config):
    """A model with random weights, biases and scales included, large enough that attention is not uniform."""
    config._attn_implementation = "eager"
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if (".ln_" in name or "norm" in name.lower()) and name.endswith("weight") else 0.0
            p.copy_(centre + 0.2 * torch.randn(p.shape, generator=generator))
    return model


def batch(model, rows: int = 4) -> np.ndarray:
    """Random tokens int32 [rows, the model's whole context]."""
    shape = (rows, model.config.max_position_embeddings)
    return np.random.default_rng(0).integers(0, model.config.vocab_size, shape).astype(np.int32)
