"""The published shapes of GPT-Neo, Pythia and BERT, as our config and as Hugging Face's."""

from typing import Any

SHAPES = {
    "125M": (12, 768, 12),
    "350M": (24, 1024, 16),
    "1.3B": (24, 2048, 16),
    "2.7B": (32, 2560, 20),
    "tiny": (2, 32, 2),  # to see that a benchmark runs
    # Pythia's: layers, width, heads
    "14M": (6, 128, 4),
    "70M": (6, 512, 8),
    "160M": (12, 768, 12),
    "410M": (24, 1024, 16),
    "base": (12, 768, 12),  # BERT's
}
VOCAB = {"gpt_neo": 50257, "gpt_neox": 50304, "bert": 30522}  # of each family


def ours(name: str, n_ctx: int = 2048, family: str = "gpt_neo") -> Any:
    """A `neojax.config.ModelConfig`, without dropout."""
    from neojax.config import AttentionConfig, ModelConfig, from_dict

    layers, embd, heads = SHAPES[name]
    if family == "gpt_neo":
        return ModelConfig(n_layer=layers, n_embd=embd, n_ctx=n_ctx, attention=AttentionConfig(heads=heads))
    sizes = {"n_layer": layers, "n_embd": embd, "n_ctx": n_ctx, "n_vocab": VOCAB[family]}
    if family == "bert":
        still = {"dropout": 0.0, "embedding": {"dropout": 0.0}}
        parts = {"attention": {"heads": heads, "dropout": 0.0}, **still}
    else:
        parts = {"attention": {"heads": heads}, "positions": {"rotary_dims": embd // heads // 4}}
    return from_dict({"model": {"family": family, **sizes, **parts}}).model


def hugging_face(name: str, n_ctx: int = 2048, device: str = "cpu", family: str = "gpt_neo") -> Any:
    """A `transformers` model of `family` with random weights made on `device`: eager attention for GPT-Neo,
    which has no other without packages of its own, the default (SDPA) for the others."""
    import torch
    from transformers import (
        BertConfig,
        BertForPreTraining,
        GPTNeoConfig,
        GPTNeoForCausalLM,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
    )

    layers, embd, heads = SHAPES[name]
    if family == "bert":
        bert = BertConfig(
            num_hidden_layers=layers,
            hidden_size=embd,
            num_attention_heads=heads,
            intermediate_size=4 * embd,
            max_position_embeddings=n_ctx,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        with torch.device(device):
            return BertForPreTraining(bert)
    if family == "gpt_neox":
        neox = GPTNeoXConfig(
            vocab_size=VOCAB[family],
            num_hidden_layers=layers,
            hidden_size=embd,
            num_attention_heads=heads,
            intermediate_size=4 * embd,
            max_position_embeddings=n_ctx,
        )
        with torch.device(device):
            return GPTNeoXForCausalLM(neox)
    config = GPTNeoConfig(
        num_layers=layers,
        hidden_size=embd,
        num_heads=heads,
        max_position_embeddings=n_ctx,
        attention_types=[[["global", "local"], layers // 2]],
        attn_implementation="eager",
    )
    with torch.device(device):
        return GPTNeoForCausalLM(config)
